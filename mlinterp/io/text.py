"""Text that came from outside (tokens, labels, messages), made safe to show: nothing invisible, no secret."""

from __future__ import annotations

import os
import re
import unicodedata
from functools import lru_cache

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories without a glyph: control, format (bidi, zero width), surrogate, private, unassigned, line and paragraph separators."""

_JOINERS = {"\u200c", "\u200d"}
"""Format characters that words and emoji are spelt with."""

_USERINFO = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]{0,20}://)[^\s/?#@]*@")
_SHORTEST_SECRET = 8
"""Shorter values are taken for words (`yes`, `true`)."""

_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSW", re.IGNORECASE)


def visible(text: str) -> str:
    r"""Return a text in which every character can be seen: those without a glyph become escapes.

    >>> visible("a\tb\u202e")
    'a\\tb\\u202e'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(char) for char in text)


@lru_cache(4096)
def _escape(char: str) -> str:
    if unicodedata.category(char) not in _UNSEEN or char in _JOINERS:
        return char
    code = ord(char)
    if char in _NAMED:
        return _NAMED[char]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def scrub(text: str) -> str:
    """Return a text without passwords: no user part in a URL, no value of an environment variable whose name says it is secret.

    >>> scrub("cannot reach https://ada:hunter2@host/api")
    'cannot reach https://host/api'
    """
    text = _USERINFO.sub(r"\1", text)
    if len(text) >= _SHORTEST_SECRET:
        for value in _secrets():
            text = text.replace(value, "[secret]")
    return text


def _secrets() -> list[str]:
    """Return the values, the longest first, since one may contain another."""
    found = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET}
    return sorted(found, key=len, reverse=True)
