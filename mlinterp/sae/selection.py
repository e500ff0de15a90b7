"""Which rows of a trace an SAE is fitted on, and how they are split: by example, never by row.

Rows of one example are near duplicates across steps and positions, so an SAE that is scored on examples it has seen is scored on
its training set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from mlinterp.determinism import numpy_stream
from mlinterp.errors import ExperimentError, SpecError, unknown
from mlinterp.subjects.base import Address

Positions = Literal["all", "tokens", "answer"]


@dataclass(frozen=True)
class Rows:
    """The chosen rows of a trace.

    Attributes:
        site: the one site that they come from.
        meta: their lines of the trace's `meta`.
        addresses: the evaluations that they come from, in the order of the trace.
    """

    site: str
    meta: pd.DataFrame
    addresses: tuple[Address, ...]

    @property
    def index(self) -> np.ndarray:
        """Their row numbers, ascending, int64."""
        return self.meta["row"].to_numpy(dtype=np.int64)


class Split(NamedTuple):
    """Row numbers by side."""

    train: np.ndarray
    validation: np.ndarray


def choose_rows(
    meta: pd.DataFrame,
    *,
    site: str | None = None,
    sup_steps: Sequence[int] | None = None,
    cycles: Sequence[int] | None = None,
    latent_steps: Sequence[int] | None = None,
    positions: Positions = "tokens",
) -> Rows:
    """Return the rows at one site that pass every filter; a filter of None lets all pass, negative numbers count from the end.

    Raises SpecError for a site or step that the trace does not hold, ExperimentError where nothing is left.
    """
    sites = [str(name) for name in meta["site"].unique()]
    if site is None:
        if len(sites) != 1:
            raise SpecError(
                "the trace holds several sites and an SAE reads one", field="variables.site", allowed=f"choose from: {', '.join(sites)}"
            )
        site = sites[0]
    elif site not in sites:
        raise unknown("variables.site", site, sites, what="site of this trace")
    keep = (meta["site"] == site).to_numpy()
    steps: Mapping[str, Sequence[int] | None] = {"sup_step": sup_steps, "cycle": cycles, "latent_step": latent_steps}
    for column, wanted in steps.items():
        if wanted is not None:
            keep = keep & meta[column].isin(_resolve(column, wanted, meta.loc[keep, column])).to_numpy()
    if positions != "all":
        keep = keep & ~meta["is_prefix"].to_numpy(dtype=bool)
    if positions == "answer":
        keep = keep & (meta["token_true"] >= 0).to_numpy()
    if not keep.any():
        raise ExperimentError(f"no row of the trace is left at {site} with these steps and positions '{positions}'")
    chosen = meta[keep]
    places = chosen[["sup_step", "cycle", "latent_step"]].drop_duplicates()
    addresses = tuple(Address(site, *(None if part < 0 else int(part) for part in place)) for place in places.itertuples(index=False))
    return Rows(site, chosen, addresses)


def _resolve(column: str, wanted: Sequence[int], there: pd.Series[Any]) -> set[int]:
    held = sorted(int(value) for value in there.unique() if value >= 0)
    field = f"variables.{column}s"
    if not held:
        raise SpecError(f"the trace has no {column} at this site", field=field, allowed="leave it out")
    resolved = {value if value >= 0 else held[-1] + 1 + value for value in wanted}
    if not resolved <= set(held):
        raise SpecError(
            f"{sorted(resolved - set(held))} not in the trace", field=field, allowed=f"it holds {column} {', '.join(map(str, held))}"
        )
    return resolved


def split_by_example(meta: pd.DataFrame, val_fraction: float, seed: int) -> Split:
    """Return the rows of a random `val_fraction` of the examples as validation rows, the others as training rows.

    Raises ExperimentError where fewer than two examples are there.
    """
    examples = np.array(sorted({str(name) for name in meta["example_id"].unique()}))
    if len(examples) < 2:
        raise ExperimentError("the trace holds one example only; a split by example needs two")
    n_val = min(len(examples) - 1, max(1, round(val_fraction * len(examples))))
    held_out = numpy_stream(seed, "sae", "split").permutation(examples)[:n_val]
    inside = meta["example_id"].isin(held_out).to_numpy()
    rows = meta["row"].to_numpy(dtype=np.int64)
    return Split(rows[~inside], rows[inside])


def evenly(index: np.ndarray, n: int) -> np.ndarray:
    """Return at most n of the rows, evenly spaced."""
    return index[:: max(1, -(-len(index) // n))]
