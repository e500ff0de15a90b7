from __future__ import annotations

import csv
import io
import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlinterp.io.tables import csv_bytes, frame, rows_digest
from mlinterp.result import ResultTable


def table(*rows: dict) -> ResultTable:
    return ResultTable.of("t", list(rows))


def read(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode())))


def test_csv_is_written_as_people_expect_it():
    written = csv_bytes(
        table({"token": "the, cat", "n": 3, "mean": 0.1, "ok": True}, {"token": 'say "hi"', "n": None, "mean": 1e-9, "ok": False})
    )
    assert written == b'token,n,mean,ok\n"the, cat",3,0.1,true\n"say ""hi""",,1e-09,false\n'


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_every_float_is_read_back_to_the_same_bits(values):
    lines = read(csv_bytes(table(*({"x": value} for value in values))))[1:]
    assert [float(cell).hex() for (cell,) in lines] == [value.hex() for value in values]


def test_missing_and_empty_differ_in_csv():
    assert csv_bytes(table({"a": None, "b": 1}, {"a": "", "b": 2})).splitlines()[1:] == [b",1", b'"",2']


def test_negative_numbers_are_no_formulas_but_strings_like_them_are():
    assert read(csv_bytes(table({"n": -1.5, "s": "-1.5"})))[1] == ["-1.5", "'-1.5"]


def test_control_characters_become_visible_escapes():
    assert read(csv_bytes(table({"token": "a\nb\x00\u202ec\x1b[31m"})))[1] == ["a\\nb\\x00\\u202ec\\x1b[31m"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_any_text_keeps_rows_and_columns_apart(texts):
    lines = read(csv_bytes(table(*({"a": text, "b": 1} for text in texts))))
    assert [len(line) for line in lines] == [2] * (len(texts) + 1)
    assert all(line[1] == "1" for line in lines[1:])


def test_column_names_are_escaped_like_cells():
    assert read(csv_bytes(table({"=cmd": 1})))[0] == ["'=cmd"]


def test_an_empty_table_is_its_header():
    assert csv_bytes(ResultTable(name="t", columns=["a", "b"])) == b"a,b\n"


def test_frame_keeps_whole_numbers_whole_where_some_are_missing():
    data = frame(table({"n": 2**62 + 1, "x": 1.5, "s": "a", "b": True}, {"n": None, "x": None, "s": None, "b": False}))
    assert dict(data.dtypes.astype(str)) == {"n": "Int64", "x": "float64", "s": "object", "b": "bool"}
    assert data["n"][0] == 2**62 + 1
    assert data["n"][1] is pd.NA
    assert math.isnan(data["x"][1])


def test_frame_holds_integers_beyond_64_bits():
    assert frame(table({"n": 2**70}))["n"][0] == 2**70


def test_frame_of_an_empty_table_has_its_columns():
    assert list(frame(ResultTable(name="t", columns=["a", "b"])).columns) == ["a", "b"]


def test_digest_of_rows_ignores_name_and_description():
    one = ResultTable.of("a", [{"x": 1, "y": None}], description="first")
    assert rows_digest(one) == rows_digest(ResultTable.of("b", [{"x": 1, "y": None}]))


@pytest.mark.parametrize("other", [{"x": 1.0}, {"x": True}, {"x": "1"}, {"x": None}, {"y": 1}, {"x": 2}])
def test_digest_of_rows_tells_values_types_and_columns_apart(other):
    assert rows_digest(table({"x": 1})) != rows_digest(table(other))


def test_digest_of_rows_sees_their_order():
    assert rows_digest(table({"x": 1}, {"x": 2})) != rows_digest(table({"x": 2}, {"x": 1}))
