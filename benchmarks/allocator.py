"""How much keeping freed memory saves: one forward pass of the 4x4 recurrent model on 200 puzzles, with and without, in turn.

python benchmarks/allocator.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "projects" / "trm_sudoku"
CHILD = """
import sys, time, torch
from mlinterp.allocator import keep_freed_memory
from mlinterp.project import find_project
if sys.argv[1] == "keep":
    keep_freed_memory()
torch.set_num_threads(1)
subject = find_project(sys.argv[2]).load_subject("trm4")
batch = subject.examples("test", 200).take(range(200))
subject.forward(batch)
start = time.process_time()
for _ in range(3):
    subject.forward(batch)
print((time.process_time() - start) / 3)
"""


def seconds(how: str) -> float:
    """Return CPU seconds of one pass in a fresh process."""
    done = subprocess.run([sys.executable, "-c", CHILD, how, str(PROJECT)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    """Print the medians and their ratio."""
    pairs = [(seconds("keep"), seconds("default")) for _ in range(3)]
    keep, default = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"default {default:.2f} s   keep {keep:.2f} s   ratio {default / keep:.2f}")


if __name__ == "__main__":
    main()
