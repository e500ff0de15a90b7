from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Hear every signal: a shell that starts the tests in the background leaves them, and their children, deaf to some."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
