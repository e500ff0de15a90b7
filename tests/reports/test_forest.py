from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread

from mlinterp.reports.forest import MOST, Mark, Panel, draw_forest

ROWS = ["A", "B"]
PANELS = [Panel("top/effect", (Mark("A", -17.0, -21.0, -13.0), Mark("B", -3.0, -6.0, 0.5)), null=0.0), Panel("base/acc", (Mark("B", 0.5),))]


def pixels(*panels: Panel) -> np.ndarray:
    return imread(io.BytesIO(draw_forest(panels, ROWS)))


def test_a_figure_is_1200_pixels_wide_and_grows_with_its_panels():
    one, two = pixels(PANELS[0]), pixels(*PANELS)
    assert one.shape[1] == two.shape[1] == 1200
    assert two.shape[0] > 1.5 * one.shape[0]


def test_equal_panels_give_equal_bytes_and_another_interval_another_figure():
    assert draw_forest(PANELS, ROWS) == draw_forest(PANELS, ROWS)
    wider = Panel("top/effect", (Mark("A", -17.0, -22.0, -13.0), PANELS[0].marks[1]), null=0.0)
    assert draw_forest([wider, PANELS[1]], ROWS) != draw_forest(PANELS, ROWS)


@pytest.mark.parametrize(("row", "colour"), [("A", (0x00, 0x72, 0xB2)), ("B", (0xD5, 0x5E, 0x00))])
def test_each_run_keeps_its_colour_in_every_panel(row, colour):
    drawn = pixels(Panel("x", (Mark(row, 1.0, 0.0, 2.0),)), Panel("y", (Mark(row, 1.0, 0.0, 2.0),)))
    found = np.isclose(drawn[..., :3], np.array(colour) / 255, atol=0.01).all(axis=-1)
    half = len(drawn) // 2
    assert found[:half].any()
    assert found[half:].any()


def test_more_panels_than_fit_are_left_out():
    many = [Panel(f"m{index}", (Mark("A", float(index)),)) for index in range(MOST + 3)]
    assert pixels(*many).shape == pixels(*many[:MOST]).shape


def test_names_from_outside_are_drawn_literally():
    draw_forest([Panel("$x_{", (Mark("$\\frac{", 1.0),))], ["$\\frac{"])
