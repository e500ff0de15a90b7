"""Our pages inside MLflow's server: the lineage of each project, read from the server's own store at every request.

They are routes of MLflow's app, in front of its own, so that its checks of hosts and origins hold for them too. Everything below
`/mlinterp` is ours, and only what is listed here answers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING

from mlinterp.errors import MlinterpError
from mlinterp.reports.document import Document, Link, Links, Prose
from mlinterp.reports.lineage_graph import Lineage
from mlinterp.reports.lineage_page import lineage_data, lineage_html, policy
from mlinterp.tracking import links, queries
from mlinterp.tracking.store import Store, open_store

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

Read = Callable[[Store, str], Lineage]
Handler = Callable[["Request"], "Response"]
_ID = re.compile(r"[0-9]{1,18}")
"""An experiment's id; longer ones do not fit a database's integers."""


def server_app(read: Read) -> FastAPI:
    """Return MLflow's app with our pages in it; `read` makes the lineage of an experiment."""
    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import STATIC_PREFIX_ENV_VAR
    from starlette.routing import Mount, Route

    root = os.environ.get(STATIC_PREFIX_ENV_VAR, "").rstrip("/")
    pages = [
        ("/lineage", _projects),
        ("/lineage/{experiment_id}.json", lambda request: _data(read, root, request)),
        ("/lineage/{experiment_id}", lambda request: _page(read, root, request)),
    ]
    ours = Mount(f"{root}/{links.PAGES}", routes=[Route(path, _said(page), methods=["GET"]) for path, page in pages])
    app.router.routes.insert(0, ours)
    return app


def _projects(request: Request) -> Response:
    from starlette.responses import HTMLResponse, RedirectResponse

    from mlinterp.reports.html import POLICY, render  # brings matplotlib, which would slow the server's start

    found = queries.projects(_store())
    here = request.url.path
    if len(found) == 1:
        return RedirectResponse(f"{here}/{found[0].experiment_id}", 302)
    items = Links(tuple(Link(project.name, f"{here}/{project.experiment_id}") for project in found))
    body = [items] if found else [Prose("No project has a run or a hypothesis yet.")]
    return HTMLResponse(render(Document("Lineage", body)), headers=_headers(POLICY))


def _page(read: Read, root: str, request: Request) -> Response:
    from starlette.responses import HTMLResponse

    store, experiment_id = _store(), _experiment(request)
    return HTMLResponse(lineage_html(read(store, experiment_id), root, live=True), headers=_headers(policy(live=True)))


def _data(read: Read, root: str, request: Request) -> Response:
    from starlette.responses import JSONResponse

    store, experiment_id = _store(), _experiment(request)
    return JSONResponse(lineage_data(read(store, experiment_id), root, live=True), headers=_headers("default-src 'none'"))


def _headers(content_policy: str) -> dict[str, str]:
    return {"Content-Security-Policy": f"{content_policy}; frame-ancestors 'self'", "Cache-Control": "no-store"}


class _UnknownError(Exception):
    """There is no such project."""


def _said(handler: Handler) -> Handler:
    """Answer with one plain sentence where there is no such project or the store is out of reach."""
    from starlette.responses import PlainTextResponse

    @wraps(handler)
    def answer(request: Request) -> Response:
        try:
            return handler(request)
        except _UnknownError as error:
            return PlainTextResponse(f"{error}\n", 404)
        except MlinterpError as error:
            return PlainTextResponse(f"{error}\n", 503)

    return answer


def _experiment(request: Request) -> str:
    """Return the id of the experiment that is asked for."""
    from mlflow.exceptions import MlflowException

    asked = request.path_params["experiment_id"]
    if _ID.fullmatch(asked):
        try:
            if _store().client.get_experiment(asked).lifecycle_stage == "active":
                return str(asked)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    raise _UnknownError("There is no such project on this server.")


@cache
def _store() -> Store:
    """Return the store that the server runs on, opened directly."""
    from mlflow.server import BACKEND_STORE_URI_ENV_VAR

    return open_store(Path.cwd(), os.environ[BACKEND_STORE_URI_ENV_VAR])
