"""Result tables as files: CSV for spreadsheets and the MLflow viewer, a data frame for pandas, a digest to compare two runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlinterp.io.digests import sha256_json
from mlinterp.io.text import visible
from mlinterp.result import Cell, ResultTable

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")
"""How a cell begins that a spreadsheet would run (CWE-1236), the full-width forms included."""


def csv_bytes(table: ResultTable) -> bytes:
    r"""Return a table as UTF-8 CSV (RFC 4180 quoting, `\n` line ends).

    Numbers are written so that reading them gives the same bits. None is an empty field, the empty string a quoted one.
    Strings show control characters as escapes, and one that a spreadsheet would take for a formula gets a leading `'`.
    """
    return "".join(",".join(line) + "\n" for line in _lines(table)).encode()


def _lines(table: ResultTable) -> Iterator[list[str]]:
    yield [_field(name) for name in table.columns]
    for row in table.rows:
        yield [_field(row.get(name)) for name in table.columns]


def _field(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return _quoted(_harmless(value))


def _harmless(text: str) -> str:
    # `visible` also takes away what could hide the first character, so the look at it comes after
    shown = visible(text)
    return f"'{shown}" if text.startswith(("\t", "\r")) or _FORMULA.match(shown) else shown


def _quoted(text: str) -> str:
    if text and not any(char in text for char in ',"') and text == text.strip():
        return text
    return '"' + text.replace('"', '""') + '"'


def frame(table: ResultTable) -> pd.DataFrame:
    """Return a table as a data frame; whole numbers stay whole (`Int64`) where some are missing."""
    import pandas as pd

    columns = {name: _series([row.get(name) for row in table.rows]) for name in table.columns}
    return pd.DataFrame(columns, columns=list(columns))


def _series(values: list[Cell]) -> pd.Series:
    import pandas as pd

    kinds = {type(value) for value in values if value is not None}
    if kinds == {int}:
        whole = all(-(2**63) <= value < 2**63 for value in values if isinstance(value, int))
        return pd.Series(values, dtype=("Int64" if None in values else "int64") if whole else "object")
    if kinds and kinds <= {int, float}:
        return pd.Series(values, dtype="float64")
    return pd.Series(values, dtype="bool" if kinds == {bool} and None not in values else "object")


def rows_digest(table: ResultTable) -> str:
    """Return the digest of a table's columns and rows, in order; 1, 1.0 and true differ."""
    return sha256_json([table.columns, [[row.get(name) for name in table.columns] for row in table.rows]])
