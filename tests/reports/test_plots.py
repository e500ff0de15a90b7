from __future__ import annotations

import io
import itertools
import threading

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from mlinterp.errors import VerificationError
from mlinterp.reports import plot_style
from mlinterp.reports.plots import draw, draw_all, paint
from mlinterp.result import ExperimentResult, Figure, ResultTable

LONG = "blocks.11.resid_post ablate latent 18712 (the duplicate token feature)"
AWKWARD = ["$x^2", "$$", "_private", " the", "\n", "\u202eevil", "中文字", "<b>|`\\", "%s{0}", "", LONG]


def table(*rows: dict) -> ResultTable:
    return ResultTable.of("t", list(rows))


def figure(kind: str, x: str = "x", **fields) -> Figure:
    return Figure(name="f", table="t", kind=kind, x=x, **({"y": ["y"]} if kind != "histogram" else {}), **fields)


def painted(declared: Figure, rows: ResultTable):
    with plot_style.style():
        canvas = paint(declared, rows)
        renderer = FigureCanvasAgg(canvas)
        renderer.draw()
    return canvas, canvas.axes[0], renderer.get_renderer()


def texts(canvas) -> list[Text]:
    """Return every text that is drawn; matplotlib keeps the labels of ticks beyond the view and does not draw them."""
    beyond = set()
    for axes in canvas.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                beyond |= set() if low <= tick.get_loc() <= high else {tick.label1, tick.label2}
    return [text for text in canvas.findobj(Text) if text.get_visible() and text.get_text().strip() and text not in beyond]


def many(n: int) -> ResultTable:
    rng = np.random.default_rng(0)
    return table(*({"x": i, "y": float(v), "g": f"g{i % 3}"} for i, v in enumerate(rng.normal(size=n))))


KINDS = [
    figure("line", series="g"),
    figure("scatter", series="g"),
    figure("bar"),
    figure("heatmap", series="g"),
    figure("histogram", x="y", series="g"),
    figure("parallel").model_copy(update={"y": ["g", "y"]}),
]


@pytest.mark.parametrize("declared", KINDS, ids=lambda f: f.kind)
def test_equal_tables_give_equal_bytes_whatever_the_user_has_set(declared):
    first = draw(declared, many(30))
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        assert draw(declared, many(30)) == first
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("declared", KINDS, ids=lambda f: f.kind)
def test_the_picture_is_a_png_of_one_width_without_a_date(declared):
    with Image.open(io.BytesIO(draw(declared, many(30)))) as image:
        assert image.format == "PNG"
        assert image.width == 1200
        assert set(image.info) <= {"dpi"}


@pytest.mark.parametrize("declared", KINDS, ids=lambda f: f.kind)
def test_awkward_labels_are_drawn_literally_and_inside_the_picture(declared):
    rows = table(*({"x": name, "y": float(i), "g": name} for i, name in enumerate(AWKWARD)))
    canvas, _, renderer = painted(declared.model_copy(update={"title": LONG * 3 + " $\\frac{", "y_label": LONG * 2, "series": "g"}), rows)
    for text in texts(canvas):
        box = text.get_window_extent(renderer)
        assert box.x0 >= -1, text
        assert box.x1 <= canvas.bbox.width + 1, text
        assert box.y0 >= -1, text
        assert box.y1 <= canvas.bbox.height + 1, text


@pytest.mark.parametrize("n", [1, 2, 40, 41, 300])
@pytest.mark.parametrize("declared", KINDS, ids=lambda f: f.kind)
def test_tick_labels_never_touch_each_other(declared, n):
    _, axes, renderer = painted(declared, many(n))
    for axis, horizontal in ((axes.xaxis, True), (axes.yaxis, False)):
        boxes = [
            label.get_window_extent(renderer)
            for label in axis.get_ticklabels()
            if label.get_visible() and label.get_text() and not label.get_rotation()
        ]
        edges = sorted((box.x0, box.x1) if horizontal else (box.y0, box.y1) for box in boxes)
        assert all(left[1] <= right[0] + 0.5 for left, right in itertools.pairwise(edges))


def test_a_missing_value_is_a_gap_in_a_line():
    _, axes, _ = painted(figure("line"), table(*({"x": i, "y": None if i == 2 else 1.0} for i in range(5))))
    assert np.isnan(axes.lines[0].get_ydata()[2])


def test_a_line_is_drawn_in_the_order_of_x():
    _, axes, _ = painted(figure("line"), table({"x": 3, "y": 9.0}, {"x": 1, "y": 1.0}, {"x": 2, "y": 4.0}))
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert axes.lines[0].get_ydata().tolist() == [1, 4, 9]


def test_a_missing_bar_is_a_hatched_slot_named_no_data():
    canvas, axes, _ = painted(figure("bar"), table({"x": "a", "y": 1.0}, {"x": "b", "y": None}, {"x": "c", "y": 0.0}))
    assert [patch.get_height() for patch in axes.patches if patch.get_hatch() is None] == [1.0, 0.0]
    assert sum(patch.get_hatch() is not None for patch in axes.patches) == 1
    assert "no data" in [text.get_text() for text in texts(canvas)]


def test_missing_heatmap_cells_are_masked_and_named():
    rows = [{"x": c, "g": r, "y": float(c + r)} for c in range(3) for r in range(2) if (c, r) != (1, 1)]
    canvas, axes, _ = painted(figure("heatmap", series="g"), table(*rows))
    drawn = axes.images[0].get_array()
    assert drawn.mask.tolist() == [[False] * 3, [False, True, False]]
    assert drawn.compressed().tolist() == [0, 1, 2, 1, 3]
    assert "no data" in [text.get_text() for text in texts(canvas)]


def test_heatmap_numbers_are_in_order_and_names_as_they_come():
    rows = [{"x": x, "g": g, "y": 1.0} for x in (10, 2, 1) for g in ("z", "a")]
    _, axes, _ = painted(figure("heatmap", series="g"), table(*rows))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "10"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["z", "a"]


def test_a_heatmap_with_both_signs_has_zero_in_the_middle_of_its_colours():
    _, axes, _ = painted(figure("heatmap", series="g"), table({"x": 0, "g": 0, "y": -1.0}, {"x": 1, "g": 0, "y": 4.0}))
    assert axes.images[0].get_clim() == (-4, 4)


def test_the_interval_runs_from_low_to_high_on_the_first_y_only():
    rows = table({"x": "a", "y": 1.0, "z": 2.0, "low": 0.5, "high": 1.75}, {"x": "b", "y": 2.0, "z": 2.0, "low": None, "high": None})
    _, axes, _ = painted(figure("bar", low="low", high="high").model_copy(update={"y": ["y", "z"]}), rows)
    (bars,) = axes.collections
    drawn = [segment[:, 1].tolist() for segment in bars.get_segments() if segment.ndim == 2]
    assert drawn == [[0.5, 1.75]]


def test_values_that_a_log_axis_cannot_show_are_counted_under_the_figure():
    canvas, axes, _ = painted(figure("line", log_y=True), table(*({"x": i, "y": float(i - 2)} for i in range(6))))
    assert axes.get_yscale() == "log"
    assert "3 values ≤ 0 cannot stand on the log axis" in [text.get_text() for text in texts(canvas)]


def test_a_density_histogram_counts_its_dead_latents_and_loses_none():
    values = [0.0] * 7 + [None] * 2 + [10.0**-k for k in (1, 1, 2, 3, 4)]
    canvas, axes, _ = painted(figure("histogram", log_x=True), table(*({"x": value} for value in values)))
    assert sum(patch.get_height() for patch in axes.patches) == 5
    assert "7 values ≤ 0 cannot stand on the log axis; 2 values missing" in [text.get_text() for text in texts(canvas)]


def test_a_histogram_of_small_whole_numbers_has_one_bin_for_each():
    _, axes, _ = painted(figure("histogram"), table(*({"x": value} for value in (1, 1, 2, 4))))
    assert [patch.get_height() for patch in axes.patches] == [2, 1, 0, 1]


def test_the_reference_is_drawn_across_and_named():
    canvas, axes, _ = painted(figure("bar", reference=0.25), table({"x": "a", "y": 1.0}))
    assert [0.25, 0.25] in [list(line.get_ydata()) for line in axes.lines]
    assert "reference 0.25" in [text.get_text() for text in texts(canvas)]


def test_the_reference_of_a_histogram_stands_where_its_value_is():
    canvas, axes, _ = painted(figure("histogram", reference=7.5), table(*({"x": value} for value in (1.0, 1.5, 2.0))))
    assert [7.5, 7.5] in [list(line.get_xdata()) for line in axes.lines]
    assert axes.get_xlim()[1] > 7.5
    assert "reference 7.5" in [text.get_text() for text in texts(canvas)]


def test_bars_with_long_labels_lie_down_in_reading_order():
    _, axes, _ = painted(figure("bar"), table(*({"x": f"{LONG} {i}", "y": float(i)} for i in range(8))))
    assert axes.yaxis_inverted()
    assert [patch.get_width() for patch in axes.patches] == list(range(8))


def test_many_series_are_named_beside_the_axes_and_the_rest_counted():
    _, axes, _ = painted(
        figure("line", series="g"), table(*({"x": i, "y": float(s), "g": f"head {s}"} for s in range(30) for i in range(2)))
    )
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(names) == 24
    assert names[-1] == "… and 7 more"
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1


def test_series_past_the_palette_differ_by_dash_and_marker():
    looks = {(plot_style.colour(i), str(plot_style.dash(i)), plot_style.marker(i)) for i in range(28)}
    assert len(looks) == 28


@pytest.mark.parametrize("declared", KINDS, ids=lambda f: f.kind)
@pytest.mark.parametrize("rows", [[], [{"x": None, "y": None, "g": None}]], ids=["no rows", "no numbers"])
def test_a_figure_without_numbers_says_so(declared, rows):
    canvas, _, _ = painted(declared, ResultTable.of("t", rows, columns=["x", "y", "g"]))
    assert "no data" in [text.get_text() for text in texts(canvas)]


@pytest.mark.parametrize("kind", ["line", "scatter", "bar", "histogram", "heatmap", "parallel"])
@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [1e-300, 1e300], [-3.0, -2.0], [1e-7, 1.1e-7]])
def test_extreme_numbers_are_drawn(kind, values):
    rows = table(*({"x": i, "y": value, "g": "a"} for i, value in enumerate(values)))
    assert draw(figure(kind, x="y" if kind == "histogram" else "x", series="g"), rows).startswith(b"\x89PNG")


def test_a_column_that_does_not_exist_names_the_nearest():
    with pytest.raises(VerificationError, match="figure 'f': table 't' has no column 'efect'; did you mean 'effect'"):
        draw(Figure(name="f", table="t", kind="line", x="x", y=["efect"]), table({"x": 1, "effect": 2.0}))


def test_a_table_that_does_not_exist_is_named():
    result = ExperimentResult(figures=[Figure(name="f", table="gone", kind="line", x="x", y=["y"])])
    result.add_table("t", [{"x": 1}])
    with pytest.raises(VerificationError, match=r"no table 'gone' \(there are: t\)"):
        draw_all(result)


def parallel(*y: str) -> Figure:
    return figure("parallel").model_copy(update={"y": list(y)})


def crossings(axes, between: int) -> list[list[float]]:
    """Return where each line starts and ends between two upright axes."""
    return [[float(end[1]) for end in line] for line in axes.collections[between].get_segments()]


def test_every_row_is_a_line_from_its_place_on_each_axis_to_its_place_on_the_next():
    rows = table({"x": 1, "y": 10.0, "z": 5.0}, {"x": 2, "y": 20.0, "z": 4.0}, {"x": 5, "y": 40.0, "z": 1.0})
    _, axes, _ = painted(parallel("y", "z"), rows)
    assert crossings(axes, 0) == [[0, 0], [0.25, pytest.approx(1 / 3)], [1, 1]]
    assert crossings(axes, 1) == [[0, 1], [pytest.approx(1 / 3), 0.75], [1, 0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "y", "z"]


def test_categories_read_downwards_and_a_column_that_never_varies_stands_in_the_middle():
    rows = table(*({"x": name, "y": 7.0, "z": float(i)} for i, name in enumerate(("topk", "relu-l1", "jumprelu"))))
    _, axes, _ = painted(parallel("y", "z"), rows)
    assert [line[0] for line in crossings(axes, 0)] == [1.0, 0.5, 0.0]
    assert [line[1] for line in crossings(axes, 0)] == pytest.approx([0.5] * 3, abs=0.02)


def test_lines_are_coloured_by_the_last_axis_and_grey_where_it_has_no_value():
    rows = table(*({"x": i, "y": value} for i, value in enumerate((1.0, 2.0, None, 1.0))), {"x": None, "y": 2.0})
    canvas, axes, _ = painted(parallel("y", "y"), rows)
    assert len(crossings(axes, 0)) == 3  # a line stops at a value that is missing
    tints = [tuple(tint) for tint in axes.collections[0].get_edgecolors().round(3)]
    assert tints[0] == tints[2] != tints[1]
    assert "3 values missing" in " ".join(text.get_text() for text in texts(canvas))
    _, axes, _ = painted(parallel("z", "y"), table({"x": 0, "z": 0, "y": None}, {"x": 1, "z": 1, "y": 5.0}))
    assert axes.collections[0].get_edgecolors()[0][:3].tolist() == [0.75, 0.75, 0.75]


def test_lines_that_meet_in_one_setting_are_kept_apart_in_the_order_in_which_they_end():
    rows = table(*({"x": 8, "k": i % 2, "y": float(i)} for i in range(8)))
    _, axes, _ = painted(parallel("k", "y"), rows)
    starts = [line[0] for line in crossings(axes, 0)]
    assert starts == sorted(starts)
    assert len(set(starts)) == 8
    assert max(starts) - min(starts) < 0.03


def test_settings_that_double_stand_evenly_on_a_logarithmic_axis_that_says_so():
    rows = table(*({"x": 2**i, "y": float(i)} for i in range(6)))
    _, axes, _ = painted(parallel("y"), rows)
    assert [line[0] for line in crossings(axes, 0)] == pytest.approx([i / 5 for i in range(6)])
    assert axes.get_xticklabels()[0].get_text().replace("\n", " ") == "x (log)"


@pytest.mark.parametrize("n", [1, 4, 200])
def test_the_labels_along_an_upright_axis_never_touch_each_other(n):
    rng = np.random.default_rng(n)
    rows = table(
        *(
            {
                "x": i % 3,
                "k": 2 ** (i % 6),
                "a": AWKWARD[i % len(AWKWARD)],
                "m": float(rng.normal()),
                "p": float(rng.uniform() ** 9),
                "y": i / n,
            }
            for i in range(n)
        )
    )
    canvas, axes, renderer = painted(parallel("k", "a", "m", "p", "y"), rows)
    placed = [(round(text.get_position()[0]), text.get_window_extent(renderer)) for text in axes.texts]
    for i in range(6):
        boxes = sorted((box.y0, box.y1) for at, box in placed if at == i)
        assert boxes
        assert all(lower[1] <= upper[0] + 1 for lower, upper in itertools.pairwise(boxes))
    assert all(box.x1 <= canvas.bbox.width + 1 for _, box in placed)


def test_settings_on_a_logarithmic_x_are_named_one_by_one():
    _, axes, _ = painted(figure("line", log_x=True), table(*({"x": 2**i, "y": float(i)} for i in range(6))))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "8", "16", "32"]


def test_settings_that_lie_close_on_a_logarithmic_x_are_named_once():
    _, axes, _ = painted(figure("line", log_x=True), table(*({"x": x, "y": 1.0} for x in (1, 2, 5, 10, 20, 50, 100, 110))))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "5", "10", "20", "50", "100"]


def test_figures_drawn_in_threads_equal_those_drawn_alone():
    alone = [draw(declared, many(20)) for declared in KINDS]
    together: dict[int, bytes] = {}
    threads = [threading.Thread(target=lambda i=i: together.update({i: draw(KINDS[i], many(20))})) for i in range(len(KINDS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(len(KINDS))] == alone
