"""The MLflow client, with one error for a store that cannot be reached."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from mlinterp.errors import TrackingError
from mlinterp.io.text import scrub
from mlinterp.tracking import signals

if TYPE_CHECKING:
    from mlflow import MlflowClient

_OUT_OF_REACH = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "IO_ERROR", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED", "PERMISSION_DENIED"}
_POOL = re.compile(r"HTTPS?ConnectionPool\(host='([^']*)', port=(\d+)\)")
_CAUSE = re.compile(r"Connection refused|timed out|Name or service not known|too many \d+ error responses|No route to host", re.IGNORECASE)


@contextmanager
def reaching(shown_uri: str) -> Iterator[None]:
    """Turn every failure to reach the store into a TrackingError of one line; other MLflow errors pass."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        if error.error_code not in _OUT_OF_REACH:
            raise
        raise TrackingError(f"tracking store {shown_uri}: {_short(str(error))}") from error
    except (RequestException, SQLAlchemyError) as error:
        raise TrackingError(f"tracking store {shown_uri}: {_short(str(error))}") from error


def _short(text: str) -> str:
    cause, pool = _CAUSE.search(text), _POOL.search(text)
    if cause:
        return cause.group().lower() + (f" ({pool[1]}:{pool[2]})" if pool else "")
    return scrub(" ".join(text.split()))[:300]


_LOST_RACE = re.compile(r"IntegrityError|UniqueViolation")
_TRANSFERS = {"log_artifact", "log_artifacts", "log_model_artifacts", "download_artifacts"}
"""Calls that move files, which may take as long as the files are large."""


class _Guarded:
    """An MlflowClient whose calls raise TrackingError where the store is out of reach.

    A stopping signal waits for the end of a call, save for transfers of files: an exception in the middle of a transaction leaves the
    database locked, against this process too. A call that lost a race for a row, which MLflow looked for and then inserted while
    another process did the same, is made again: now it finds the row.
    """

    def __init__(self, client: MlflowClient, shown_uri: str) -> None:
        self._client, self._shown_uri = client, shown_uri

    def __getattr__(self, name: str) -> Callable[..., Any]:
        from mlflow.exceptions import MlflowException

        method = getattr(self._client, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with reaching(self._shown_uri), nullcontext() if name in _TRANSFERS else signals.deferred():
                try:
                    return method(*args, **kwargs)
                except MlflowException as error:
                    if not _LOST_RACE.search(str(error)):
                        raise
                return method(*args, **kwargs)

        return call


def connect(uri: str, shown_uri: str) -> MlflowClient:
    """Return a client of a store for runs and registry alike; every method raises TrackingError where the store is out of reach."""
    from mlflow import MlflowClient

    with reaching(shown_uri):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    return cast("MlflowClient", _Guarded(client, shown_uri))
