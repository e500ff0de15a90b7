from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlinterp.io.text import scrub, visible


@given(st.text())
def test_what_is_visible_has_a_glyph_and_can_be_encoded(text):
    shown = visible(text)
    shown.encode()
    assert not {unicodedata.category(char) for char in shown if char not in "\u200c\u200d"} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def test_ordinary_text_of_any_script_stays():
    for text in ("Ġthe", "naïve", "中文", "مرحبا", "👩\u200d🔬", "a b"):
        assert visible(text) == text


def test_different_invisible_characters_stay_different():
    assert len({visible(char) for char in "\n\r\t\x00\x7f\u200b\u202e\u2066\ufeff\U000e0041"}) == 10


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("postgresql://ada:s3cret@db:5432/x failed", "postgresql://db:5432/x failed"),
        ("http://ada@host/", "http://host/"),
        ("see https://host/a@b", "see https://host/a@b"),
        ("use_cls_token is on, mail ada@host", "use_cls_token is on, mail ada@host"),
    ],
)
def test_urls_lose_their_user_part_and_nothing_else_changes(text, clean):
    assert scrub(text) == clean


def test_values_of_secret_variables_are_taken_out(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("DB_PASSWORD", "hf_abcdefgh_longer")
    monkeypatch.setenv("USE_TOKEN", "yes")
    assert scrub("sent hf_abcdefgh_longer, then hf_abcdefgh: yes") == "sent [secret], then [secret]: yes"
