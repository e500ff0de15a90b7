"""Ids of hypotheses that are unique in a project, whoever adds at the same time and from wherever.

MLflow has no transactions, so an id is claimed as at a bakery:

1. Write the claim into the hypothesis's own run; only then look who else claims the same id.
2. Alone: confirm it. Two that claim the same id cannot both be alone, since each had written before it looked.
3. Somebody has confirmed it: give way. Nobody has: the smallest run id stays, waiting until the others have given way or confirmed.
4. Who gave way claims the next free id, or, where one certain id was wanted, leaves it to the other.

On one machine a file lock keeps all this from ever mattering.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from mlinterp.errors import TrackingError
from mlinterp.tracking import queries
from mlinterp.tracking.recorder import Recorder
from mlinterp.tracking.store import Store, locked

if TYPE_CHECKING:
    from mlflow.entities import Run

CLAIM, CONFIRMED = "mlinterp.hypothesis_claim", "mlinterp.hypothesis"
_FILE = "sqlite:///"
PATIENCE_SECONDS = 15.0
"""How long the smallest waits for the others; one that has said nothing for so long has died."""


def alone_here(store: Store) -> AbstractContextManager[None]:
    """Hold this machine's lock on adding hypotheses: beside the store where that is a file, so that whoever opens it meets there."""
    if store.uri.startswith(_FILE):
        return locked(Path(f"{store.uri.removeprefix(_FILE)}.hypotheses.lock"))
    return locked(store.workspace / ".mlinterp" / "hypotheses.lock")


def next_free(store: Store, experiment_id: str, reserved: Mapping[str, object]) -> str:
    """Return the id after the highest that was ever claimed or is reserved."""
    taken = [run.data.tags[CLAIM] for run in _claims(store, experiment_id) if CLAIM in run.data.tags]  # one may give way meanwhile
    return f"h{max((int(name[1:]) for name in [*taken, *reserved]), default=0) + 1:03d}"


def settle(store: Store, experiment_id: str, run_id: str, next_id: Callable[[], str] | None, wanted: str) -> str | None:
    """Claim `wanted` for a run and return the id it got: after a collision the next one, or None where there is to be no other."""
    recorder = Recorder(store.client, run_id)
    while True:
        recorder.tags({CLAIM: wanted})
        if _won(store, experiment_id, run_id, wanted):
            recorder.tags({CONFIRMED: wanted})
            return wanted
        store.client.delete_tag(run_id, CLAIM)
        if next_id is None:
            return None
        wanted = next_id()


def _won(store: Store, experiment_id: str, run_id: str, wanted: str) -> bool:
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        others = [run for run in _claims(store, experiment_id, wanted) if run.info.run_id != run_id]
        if not others:
            return True
        if any(CONFIRMED in run.data.tags for run in others) or min(run.info.run_id for run in others) < run_id:
            return False
        if time.monotonic() > until:
            for run in others:
                store.client.delete_run(run.info.run_id)
            return True
        time.sleep(0.1)


def _claims(store: Store, experiment_id: str, name: str | None = None) -> list[Run]:
    where = f"tags.`{CLAIM}` = '{name}'" if name else f"tags.`{CLAIM}` != ''"
    found = queries.search(store, experiment_id, where)
    return found if name else [*found, *queries.search(store, experiment_id, where, deleted=True)]


def clear_unfinished(store: Store, experiment_id: str) -> None:
    """Put the runs of those who died between claiming and confirming into the bin. Hold `alone_here`: in a file nobody else is alive."""
    too_old = (time.time() - (0 if store.uri.startswith(_FILE) else 10 * PATIENCE_SECONDS)) * 1000
    for run in queries.search(store, experiment_id, "tags.`mlinterp.kind` = 'hypothesis'"):
        if CONFIRMED not in run.data.tags and run.info.start_time < too_old:
            try:
                store.client.delete_run(run.info.run_id)
            except TrackingError:
                return
