"""The lineage of a project as one interactive page: a file to keep, or what the UI serves. Nothing is loaded from outside.

The page is a frame (`assets/`, the same for every project) with the lineage in it as JSON. Its scripts build every element by name
and set every text as text, so that whatever a run or a claim is called stays text; a content security policy with the digests of the
frame's own style and script lets nothing else run.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from mlinterp.io.text import scrub, visible
from mlinterp.reports import document
from mlinterp.reports.lineage_graph import Lineage

ASSETS = Path(__file__).with_name("assets")
LIBRARY = "dagre.min"
SCRIPTS = ("dom", "text", "looks", "model", "layout", "camera", "draw", "tree", "filters", "search", "details", "scene", "controls", "page")
"""Ours, in the order in which they are joined to one script, after the library (whose licence is in it)."""

_UNSAFE = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
_SLOT = re.compile(r"<!--(\w+)-->")


def lineage_html(lineage: Lineage, base_url: str = "", live: bool = False) -> str:
    """Return the page of a lineage.

    Args:
        lineage: what is drawn.
        base_url: the MLflow server that links lead to. Without one a file has no links; a served page links to its own server.
        live: whether the page is served, at an address that answers with fresh data where `.json` is appended.
    """
    frame = _frame()
    data = json.dumps(lineage_data(lineage, base_url, live)).translate(_UNSAFE)
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy(live)}">'
    title = f"<title>{escape(_plain(lineage.project))}: lineage</title>"
    slots = {"policy": meta, "title": title, "style": frame["style"], "data": data, "script": frame["script"]}
    return _SLOT.sub(lambda slot: slots[slot[1]], frame["page"])


def lineage_data(lineage: Lineage, base_url: str = "", live: bool = False) -> dict[str, Any]:
    """Return what the page draws, as JSON: every text visible and without secrets, every link one to follow or empty."""

    def address(link: str) -> str:
        inside = document.link("", link).url if link.startswith("#/") and (base_url or live) else None
        return f"{base_url.rstrip('/')}/{inside}" if inside else ""

    return {
        "project": _plain(lineage.project),
        "link": address(lineage.link),
        "generated": datetime.now(UTC).isoformat(timespec="seconds"),
        "live": live,
        "nodes": [
            {
                "id": _plain(node.id),
                "kind": node.kind,
                "title": _plain(node.title),
                "state": _plain(node.state),
                "standing": _plain(node.standing),
                "link": address(node.link),
                "facts": [[_plain(name), _plain(value)] for name, value in node.facts],
                "at": node.at,
                "confidence": node.confidence,
            }
            for node in lineage.nodes
        ],
        "edges": [
            {"source": _plain(edge.source), "target": _plain(edge.target), "kind": edge.kind, "label": _plain(edge.label)}
            for edge in lineage.edges
        ],
    }


def policy(live: bool) -> str:
    """Return the page's content security policy: its own style and script, by digest; served, it may also ask its server for data."""
    frame = _frame()
    parts = ["default-src 'none'", f"script-src '{_digest(frame['script'])}'", f"style-src '{_digest(frame['style'])}'"]
    parts += ["img-src data:", "base-uri 'none'", "form-action 'none'"]
    return "; ".join([*parts, "connect-src 'self'"] if live else parts)


@cache
def _frame() -> dict[str, str]:
    own = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    script = f'{_asset(f"{LIBRARY}.js")}(() => {{\n"use strict";\n{own}}})();\n'
    return {"page": _asset("page.html"), "style": _asset("page.css"), "script": script}


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _plain(text: str) -> str:
    return visible(scrub(" ".join(text.split())))
