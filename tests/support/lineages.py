"""Lineages of projects that never were: small, usual and large, and one whose every text is hostile."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field, replace

from mlinterp.reports.lineage_graph import Edge, EdgeKind, Lineage, Node, NodeKind

PROJECT = "#/experiments/7/runs?workflowType=machine_learning"
NOON = 1_760_000_000_000
"""When the first node came to be, milliseconds since 1970."""

CLAIMS = (
    "The answer lives in z_H at the last supervision step",
    "Latent 412 of z_L writes the digit of a naked single",
    "Ablating the top 8 latents of z_H removes row conflicts before column conflicts",
    "The first cycle only copies the givens",
    "A linear probe on z_L finds the box constraint by cycle 2",
    "Patching one cell's state moves its answer and leaves its neighbours alone",
    "Latents that fire on empty cells carry the count of candidates",
    "Halting follows from the norm of z_H, not from the answer",
    "Steering latent 77 makes the model write a second 4 into a row that has one",
    "The reconstruction error of the SAE holds what the halting head reads",
)
HOSTILE = (
    "<script>document.title='pwned'</script>",
    "</script><script>document.title='pwned'</script>",
    '"><img src=x onerror="document.title=\'pwned\'">',
    "<!--<script>",
    "${alert(1)} {{7*7}} \u202e\u2066abc\u200b\u2028line\u2029end\x00\x1b[31m",
    "javascript:alert(1)",
    "w" * 900,
    "__proto__",
    "constructor",
    "' onmouseover='alert(1)",
    "😀👩\u200d👩\u200d👧 \u05e9\u05dc\u05d5\u05dd مرحبا",
    "&lt;b&gt;&amp;",
)
VERDICTS = ("supports", "refutes", "inconclusive")
STATUS = ("proposed", "testing", "supported", "refuted", "superseded")


@dataclass
class _Draft:
    """A lineage in the making; ids of runs look like MLflow's."""

    dice: random.Random
    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)

    def run(self, kind: NodeKind, title: str, state: str = "finished", standing: str = "", **facts: str) -> str:
        run_id = f"{self.dice.getrandbits(128):032x}"
        link = f"#/experiments/7/runs/{run_id}?workflowType=machine_learning"
        known = {"run": run_id[:12], "seed": str(self.dice.randrange(5)), **facts}
        self.nodes.append(Node(run_id, kind, title, state, standing, link, tuple(known.items()), self._now()))
        return run_id

    def hypothesis(self, claim: str, status: str, confidence: float) -> str:
        number = sum(node.kind == "hypothesis" for node in self.nodes) + 1
        link = f"#/experiments/7/runs/{self.dice.getrandbits(128):032x}?workflowType=machine_learning"
        facts = {
            "prediction": "adjusted effect < -5 with an interval clear of 0",
            "refuted by": "an effect no larger than its random-latent control's",
            "why": "2 of 3 tests inside what was predicted, at alpha 0.0167 each",
            "level": "causal",
        }
        name = f"h{number:03d}"
        self.nodes.append(Node(name, "hypothesis", claim, status, "", link, tuple(facts.items()), self._now(), confidence))
        return name

    def join(self, source: str, target: str, kind: EdgeKind, label: str = "") -> None:
        self.edges.append(Edge(source, target, kind, label))

    def _now(self) -> int:
        return NOON + 3_700_000 * len(self.nodes)


def lineage(size: int, seed: int = 0) -> Lineage:
    """Return the lineage of a project with `size` nodes: subjects, traces, SAEs, studies and sweeps, runs, a forest of hypotheses."""
    draft = _Draft(random.Random(seed))
    if size:
        _small(draft) if size < 10 else _large(draft, size)
    return Lineage("trm_sudoku", "7", tuple(draft.nodes), tuple(draft.edges), PROJECT)


def _small(draft: _Draft) -> None:
    claim = draft.hypothesis(CLAIMS[0], "supported", 0.86)
    sae = draft.run("sae", "sae_fit · trm4.z_H · 1c5a90d2", fvu="0.019", l0="6")
    where = draft.run("run", "intervene · trm4 · e95e301f", "supports", verdict="supports: -28.3 [-30.1, -26.4] < -5, p = 0.0001")
    draft.join(sae, where, "input", "sae")
    draft.join(where, claim, "evidence", "supports")


def _large(draft: _Draft, size: int) -> None:
    dice = draft.dice
    claims = [_claim(draft, number) for number in range(max(3, size // 8))]
    subjects = [draft.run("subject", f"subject_fit · trm{4 + 2 * number}", exact="0.98") for number in range(1 + size // 150)]
    traces, saes = [], []
    for number in range(max(2, size // 40)):
        traces.append(draft.run("trace", f"trace · trm4 · {number:02d}", sites="z_H, z_L"))
        draft.join(dice.choice(subjects), traces[-1], "input", "subject")
    for number in range(max(2, size // 25)):
        saes.append(draft.run("sae", f"sae_fit · trm4.z_H · k{3 * number + 3}", l0=str(3 * number + 3)))
        draft.join(dice.choice(traces), saes[-1], "input", "trace")
    names = itertools.count(1)
    while len(draft.nodes) < size:
        room = size - len(draft.nodes) - 1
        kind = dice.choice(["run", "run", "study", "sweep"]) if room > 8 else "run"
        if kind == "run":
            _evidence(draft, f"intervene · where {next(names)}", saes, dice.choice(claims))
            continue
        parent = draft.run("study" if kind == "study" else "sweep", f"{kind} · trm4 · {next(names):02d}")
        claim = dice.choice(claims)
        for _ in range(min(room, 4 if kind == "study" else 8)):
            child = _evidence(draft, f"{'step' if kind == 'study' else 'cell'} {next(names)}", saes, claim)
            draft.join(parent, child, "contains")


def _claim(draft: _Draft, number: int) -> str:
    dice = draft.dice
    status = STATUS[number % 5]
    confidence = {"proposed": 0.5, "testing": 0.62, "supported": 0.93, "refuted": 0.04, "superseded": 0.31}[status]
    text = CLAIMS[number % len(CLAIMS)] + (f", seen at step {number}" if number >= len(CLAIMS) else "")
    earlier = [node.id for node in draft.nodes if node.kind == "hypothesis"]
    name = draft.hypothesis(text, status, confidence)
    if earlier and dice.random() < 0.6:
        draft.join(dice.choice(earlier[-6:]), name, "refines")
    return name


def _evidence(draft: _Draft, title: str, saes: list[str], claim: str) -> str:
    dice = draft.dice
    verdict, standing = dice.choice(VERDICTS), dice.choices(["", "stale", "retracted", "duplicate"], [12, 2, 1, 1])[0]
    if dice.random() < 0.1:
        run = draft.run("run", title, dice.choice(["failed", "killed", "finished", "running"]))
    else:
        run = draft.run("run", title, verdict, standing, verdict=f"{verdict}: adjusted effect -4.1 [-6.0, -2.2] against < -5")
        draft.join(run, claim, "evidence", verdict)
    draft.join(dice.choice(saes), run, "input", "sae")
    return run


def hostile() -> Lineage:
    """Return a lineage in which every text is one that tries to be more than text."""
    plain = lineage(30)
    texts = itertools.cycle(HOSTILE)
    nodes = tuple(
        replace(node, title=next(texts), state=next(texts) if number % 3 == 0 else node.state, facts=((next(texts), next(texts)),))
        for number, node in enumerate(plain.nodes)
    )
    links = ("javascript:alert(1)", "//evil.example/x", 'https://evil.example/"><script>', '#/x"onmouseover="alert(1)', "data:text/html,x")
    nodes = tuple(replace(node, link=links[number % 5]) if number % 2 else node for number, node in enumerate(nodes))
    edges = tuple(replace(edge, label=next(texts)) for edge in plain.edges)
    return Lineage(HOSTILE[0], "7", nodes, edges, PROJECT)
