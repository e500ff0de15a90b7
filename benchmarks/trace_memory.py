"""Whether tracing's memory stays flat: peak RSS of a small and of a large trace of the 4x4 recurrent model, each in a fresh process.

python benchmarks/trace_memory.py
"""

from __future__ import annotations

import subprocess
import sys

CHILD = """
import resource, sys, tempfile
from pathlib import Path
from mlinterp.progress import Silent
from mlinterp.subjects.trm import build
from mlinterp.subjects.trm_config import TRMConfig
from mlinterp.tracing.capture import capture
subject = build("trm", TRMConfig.model_validate({"task": {"name": "sudoku4", "n_test": 2000, "split_by": "puzzle"}}), Path("."))
examples = subject.examples("test", int(sys.argv[1]))
with tempfile.TemporaryDirectory() as folder:
    capture(subject, examples, subject.addresses(["z_L", "z_H"]), Path(folder), Silent(), header={}, batch_size=32, predictions=True,
            on_nonfinite="error", shard_bytes=2**30, inline=False)
    states = sum(path.stat().st_size for path in Path(folder).glob("states*"))
print(states // 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def main() -> None:
    """Print both."""
    for n in (64, 2000):
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", CHILD, str(n)], check=True, capture_output=True, text=True)
        states, peak = done.stdout.split()
        print(f"{n} examples: {states} MiB of states, peak RSS {peak} MiB")


if __name__ == "__main__":
    main()
