"""How MLflow keeps a saved view of its runs page: columns, filter, grouping and charts.

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
        group_by: tag that rows are grouped by, which also lays the tree of runs flat: a filtered tree hides what it found inside a
            collapsed parent.
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
        columns = [_column(kind, name) for kind, name in self.columns]
        order = {"orderByKey": _column("metrics", self.order_by), "orderByAsc": False} if self.order_by else {}
        return {
            **order,
            "searchFilter": self.search,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": columns,
            "columnOrder": ["1", _NAME, *columns, "runDateAndNestInfo", "duration"],
            "columnWidths": {_NAME: 260, **{column: _width(column) for column in columns}},
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


_NAME = "attributes.`Run Name`"
"""One of the columns that are always there; the others are a box to tick, when a run was created and how long it took."""


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _width(column: str) -> int:
    """Return the width in pixels at which a column's name can be read; a claim is a sentence."""
    return 420 if column == _column("tags", "mlinterp.claim") else min(200, max(100, 32 + 7 * len(column.split("`")[1])))


def _uuid(key: str, position: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"mlinterp:{key}:{position}"))


def scatter(x: str, y: str, *, over: Literal["METRIC", "PARAM"] = "METRIC") -> dict[str, Any]:
    """Return a chart of a metric against another, or `over` a parameter, a point for each run."""
    axes = {"xaxis": {"key": x, "type": over}, "yaxis": {"key": y, "type": "METRIC"}}
    return {"type": "SCATTER", **axes, "runsCountToCompare": 100, "displayName": f"{y} against {x}"}


def parallel(params: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """Return a parallel-coordinates chart, a line for each run."""
    return {"type": "PARALLEL", "selectedParams": list(params), "selectedMetrics": list(metrics), "runsCountToCompare": 100}


def bar(metric: str) -> dict[str, Any]:
    """Return a bar for each run."""
    return {"type": "BAR", "metricKey": metric, "runsCountToCompare": 30}


def line(metric: str, *, scale: Literal["log", "linear"] = "log") -> dict[str, Any]:
    """Return a metric over steps, a line for each run."""
    shape = {"metricKey": metric, "selectedMetricKeys": [metric], "xAxisKey": "step", "scaleType": scale, "lineSmoothness": 0}
    return {"type": "LINE", **shape, "runsCountToCompare": 20}


def is_untouched(text: str) -> bool:
    """Whether a kept view is as it was saved: the UI dates every change."""
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
