"""Graphs drawn in columns: where names stand, which way lines lead, and that whatever is drawn can be read."""

from __future__ import annotations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyArrowPatch

from mlinterp.errors import VerificationError
from mlinterp.reports import plot_style
from mlinterp.reports.plot_graph import layout_of
from mlinterp.reports.plots import draw, paint
from mlinterp.result import Figure, ResultTable

GRAPH = Figure(name="f", table="t", kind="graph", x="from", series="to", y=["weight"])
SMALL = [("a/1", "b/7", 0.5), ("a/2", "b/7", -1.0), ("b/7", "metric", 1.0), ("a/error", "metric", 0.1), ("b/9", "metric", 0.2)]


def table(lines: list[tuple[str, str, float | None]]) -> ResultTable:
    return ResultTable.of("t", [dict(zip(("from", "to", "weight"), line, strict=True)) for line in lines], columns=["from", "to", "weight"])


def painted(rows: ResultTable):
    with plot_style.style():
        canvas = paint(GRAPH, rows)
        FigureCanvasAgg(canvas).draw()
    return canvas


def test_names_stand_in_columns_by_what_comes_before_the_slash_and_lines_lead_right():
    layout = layout_of(GRAPH, table(SMALL[::-1]))
    assert layout.headings == ["a", "b", "metric"]
    assert [sorted(names) for names in layout.columns] == [["a/1", "a/2", "a/error"], ["b/7", "b/9"], ["metric"]]
    assert all(layout.at[one][0] < layout.at[other][0] for one, other, _ in layout.lines)


def test_names_stand_near_those_that_they_lead_to():
    lines = [("a/1", "b/4", 1.0), ("a/2", "b/3", 1.0), ("a/3", "b/2", 1.0), ("a/4", "b/1", 1.0)]
    layout = layout_of(GRAPH, table(lines))
    assert [layout.at[one][1] for one, *_ in lines] == [layout.at[other][1] for _, other, _ in lines]


def test_lines_are_as_wide_as_their_weight_and_coloured_by_its_sign():
    canvas = painted(table(SMALL))
    lines = sorted(
        (patch for patch in canvas.axes[0].patches if isinstance(patch, FancyArrowPatch)), key=lambda patch: patch.get_linewidth()
    )
    assert len(lines) == 5
    assert lines[0].get_linewidth() == pytest.approx(0.6 + 4.4 * 0.1)
    assert lines[-1].get_linewidth() == 5.0
    assert len({patch.get_edgecolor()[:3] for patch in lines}) == 2


def test_columns_that_no_line_orders_go_by_their_numbers_and_an_end_without_one_is_last():
    lines = [("embed", "mlp 10", 3.0), ("embed", "out", 2.0), ("embed", "L2/h1", 1.0), ("mlp 10", "out", 1.0), ("L2/h1", "out", 1.0)]
    assert layout_of(GRAPH, table(lines)).headings == ["embed", "L2", "mlp 10", "out"]


def test_columns_that_lead_to_each_other_are_refused_by_name():
    with pytest.raises(VerificationError, match="figure 'f': the columns a, b lead to each other"):
        draw(GRAPH, table([("a/1", "b/1", 1.0), ("b/2", "a/2", 1.0)]))


def test_a_graph_without_a_column_to_lead_to_is_refused():
    with pytest.raises(VerificationError, match="a graph needs a series column"):
        draw(GRAPH.model_copy(update={"series": None}), table(SMALL))


@pytest.mark.parametrize("lines", [[], [("a/1", "b/1", None)]], ids=["no rows", "no numbers"])
def test_a_graph_without_lines_says_so(lines):
    assert "no data" in [text.get_text() for text in painted(table(lines)).axes[0].texts]


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1e-300, 1e300], [-3.0, -2.0]])
def test_extreme_weights_are_drawn(weights):
    assert draw(GRAPH, table([(f"a/{n}", "b", weight) for n, weight in enumerate(weights)])).startswith(b"\x89PNG")


def test_equal_tables_give_equal_bytes():
    assert draw(GRAPH, table(SMALL)) == draw(GRAPH, table(SMALL))


@pytest.mark.parametrize(("n", "columns"), [(1, 3), (12, 3), (25, 3), (6, 9)])
def test_names_of_a_column_do_not_overlap_and_stay_on_the_picture(n, columns):
    names = [f"blocks.{place}.resid_post/{number} '$x^2 <b>\u202e{'long' * 9}'" for place in range(columns) for number in range(n)]
    lines = [(one, other, 1.0) for one, other in zip(names, names[n:], strict=False)]
    canvas = painted(table(lines))
    boxes = [text.get_window_extent() for text in canvas.axes[0].texts]
    for at, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= canvas.bbox.x1
        assert box.y0 >= 0
        assert not any(box.overlaps(other) for other in boxes[at + 1 :])
