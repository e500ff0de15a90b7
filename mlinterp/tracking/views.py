"""Saved views of a project in the MLflow UI, so that a link shows the right columns and charts without a click.

MLflow keeps a saved view as an experiment tag `mlflow.sharedViewState.<key>`: JSON with a name, two dates and the state of the runs
page, deflated and base64-encoded. The format is MLflow's own and undocumented, so nothing else here knows of it; a UI that no longer
reads it shows its usual page.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mlinterp.tracking import links
from mlinterp.tracking.store import Store

PREFIX = "mlflow.sharedViewState."
_MARK = "deflate;"
_SECTION = "mlinterp"
Mode = Literal["TABLE", "CHART"]


@dataclass(frozen=True)
class View:
    """One saved view.

    Attributes:
        key: stable part of its address.
        name: what the UI lists it as.
        mode: whether a link opens it as a table or as charts.
        columns: shown columns, such as ("metrics", "eval/fvu").
        order_by: the metric that rows are sorted by, the highest first; the newest run first where None.
        search: filter in MLflow's search syntax.
        group_by: tag that rows are grouped by.
        charts: chart cards in order.
    """

    key: str
    name: str
    mode: Mode
    columns: Sequence[tuple[str, str]]
    order_by: str | None = None
    search: str = ""
    group_by: str | None = None
    charts: Sequence[Mapping[str, Any]] = field(default=())

    def state(self) -> dict[str, Any]:
        """Return the state of the runs page that this view means."""
        grouping = (
            {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": self.group_by}]} if self.group_by else None
        )
        # sections in an order of our own: sorted by name, those that MLflow adds for every metric would go before ours
        cards = [
            {"uuid": _uuid(self.key, position), "metricSectionId": _SECTION, "deleted": False, "isGenerated": False, **chart}
            for position, chart in enumerate(self.charts)
        ]
        order = {"orderByKey": _column("metrics", self.order_by), "orderByAsc": False} if self.order_by else {}
        return {
            **order,
            "searchFilter": self.search,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": [_column(kind, name) for kind, name in self.columns],
            "runsHiddenMode": "FIRST_20_RUNS",
            "groupBy": grouping,
            "useGroupedValuesInCharts": False,
            "hideEmptyCharts": True,
            "compareRunCharts": cards,
            "compareRunSections": [
                {"uuid": _SECTION, "name": self.name, "display": True, "isReordered": True, "columns": 2, "cardHeight": 380}
            ],
            "isAccordionReordered": True,
        }


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _uuid(key: str, position: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"mlinterp:{key}:{position}"))


def scatter(x: str, y: str) -> dict[str, Any]:
    """Return a chart of one metric against another, a point for each run."""
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return {"type": "SCATTER", **axes, "runsCountToCompare": 100, "displayName": f"{y} against {x}"}


def parallel(params: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """Return a parallel-coordinates chart, a line for each run."""
    return {"type": "PARALLEL", "selectedParams": list(params), "selectedMetrics": list(metrics), "runsCountToCompare": 100}


def bar(metric: str) -> dict[str, Any]:
    """Return a bar for each run."""
    return {"type": "BAR", "metricKey": metric, "runsCountToCompare": 30}


def line(metric: str) -> dict[str, Any]:
    """Return a metric over steps, a line for each run, on a log scale."""
    shape = {"metricKey": metric, "selectedMetricKeys": [metric], "xAxisKey": "step", "scaleType": "log", "lineSmoothness": 0}
    return {"type": "LINE", **shape, "runsCountToCompare": 20}


FLAT = "mlinterp.type"
"""Grouping by this tag lays the tree of runs flat; a filtered tree hides what it found inside a collapsed parent."""

_IDENTITY = [("tags", "mlinterp.type"), ("tags", "mlinterp.subject"), ("tags", "mlinterp.hypothesis"), ("tags", "mlinterp.verdict")]

_HYPOTHESES = View(
    key="mlinterp-hypotheses",
    name="Runs by hypothesis",
    mode="TABLE",
    columns=[*_IDENTITY, ("tags", "mlinterp.mode"), ("metrics", "aggregates/mean_delta"), ("metrics", "aggregates/effect_size")],
    group_by="mlinterp.hypothesis",
)
_RUNS = View(
    key="mlinterp-runs",
    name="All runs, flat",
    mode="TABLE",
    columns=[
        *_IDENTITY[:2],
        ("tags", "mlinterp.mode"),
        *(
            ("metrics", name)
            for name in ("subject/exact", "subject/ce_loss", "sae/fvu", "sae/l0", "top/effect", "top/control_effect", "top/p_adj")
        ),
    ],
    group_by=FLAT,
)
_SAE_PARAMS = [f"spec.variables.{name}" for name in ("activation", "d_sae", "k")]
_SAE_METRICS = ["sae/l0", "sae/fvu", "sae/frac_dead", "substitution/ce_loss_recovered"]
_SAES = View(
    key="mlinterp-saes",
    name="SAEs: L0 against CE recovered",
    mode="CHART",
    columns=[
        *_IDENTITY[1:3],
        *(("params", name) for name in _SAE_PARAMS),
        *(("metrics", name) for name in _SAE_METRICS),
        ("attributes", "Models"),
    ],
    order_by="substitution/ce_loss_recovered",
    search="tags.`mlinterp.produces` = 'sae'",
    group_by=FLAT,
    charts=[
        scatter("sae/l0", "substitution/ce_loss_recovered"),
        scatter("sae/l0", "sae/fvu"),
        parallel(_SAE_PARAMS, _SAE_METRICS),
        line("sae_fit/fvu"),
    ],
)
MOST_EFFECTS = 8
"""Interventions whose effects become columns and charts."""


def project_views(store: Store, experiment_id: str) -> list[View]:
    """Return the views of a project. The names of effects come from its newest interventional runs, each beside its control."""
    where = "tags.`mlinterp.mode` = 'interventional'"
    effects: dict[str, None] = {}
    for run in store.client.search_runs([experiment_id], where, max_results=50):
        effects |= dict.fromkeys(name.removeprefix("effect/") for name in run.data.metrics if name.startswith("effect/"))
    named = list(effects)[:MOST_EFFECTS]
    columns = [("metrics", f"{side}/{name}") for name in named for side in ("effect", "control", "adjusted")]
    charts = [scatter("top/control_effect", "top/effect"), bar("top/adjusted_effect")]
    charts += [bar(f"{side}/{name}") for name in named for side in ("effect", "control")]
    shown = View("mlinterp-effects", "Effects beside controls", "CHART", [*_IDENTITY, *columns], search=where, group_by=FLAT, charts=charts)
    return [_RUNS, _HYPOTHESES, _SAES, shown]


def write_views(store: Store, experiment_id: str) -> None:
    """Save a project's views in its experiment. One that a person has changed in the UI since is theirs, and stays."""
    tags = store.client.get_experiment(experiment_id).tags
    for view in project_views(store, experiment_id):
        tag = PREFIX + view.key
        if tag not in tags or _is_untouched(tags[tag]):
            store.client.set_experiment_tag(experiment_id, tag, encode(view))


def _is_untouched(text: str) -> bool:
    try:
        kept = json.loads(text)
        return bool(kept["createdAt"] == kept["updatedAt"])
    except (ValueError, KeyError, TypeError):
        return False


def encode(view: View) -> str:
    """Return a view as the text that MLflow keeps."""
    now = int(time.time() * 1000)
    packed = base64.b64encode(zlib.compress(json.dumps(view.state(), separators=(",", ":")).encode(), 9)).decode()
    return json.dumps({"name": view.name, "createdAt": now, "updatedAt": now, "state": _MARK + packed})


def decode(text: str) -> tuple[str, dict[str, Any]]:
    """Return name and state of a kept view. Raises ValueError for anything else."""
    kept = json.loads(text)
    mark, packed = kept["state"][: len(_MARK)], kept["state"][len(_MARK) :]
    if mark != _MARK:
        raise ValueError("not a saved view")
    return kept["name"], json.loads(zlib.decompress(base64.b64decode(packed)))


def view_links(store: Store, experiment_id: str, base_url: str) -> dict[str, str]:
    """Return the address of each saved view of a project under a server's root, by its name."""
    return {
        view.name: links.absolute(base_url, links.view(experiment_id, view.key, view.mode)) for view in project_views(store, experiment_id)
    }
