"""The parent of a worker: hands signals on, and sees to the runs of a worker that died without a word."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from mlinterp.errors import Interrupted
from mlinterp.tracking.lease import reconcile
from mlinterp.tracking.signals import STOPPING


def supervised(work: Callable[[], int], workspace: Path) -> int:
    """Do `work` in a child process and return its exit code; 128+n where signal n killed it.

    Call it before torch, Lightning or MLflow are imported: the parent stays small, and nothing with threads is forked. INT, TERM and
    HUP go on to the child, which ends by itself. However it ended, runs that it left open are closed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    heeded = [signum for signum in STOPPING if signal.getsignal(signum) is not signal.SIG_IGN]
    signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, heeded)
        os._exit(_exit_code(work))

    def forward(signum: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, signum)

    previous = {signum: signal.signal(signum, forward) for signum in heeded}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, heeded)
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    reconcile(workspace)
    return code if code >= 0 else 128 - code


def _exit_code(work: Callable[[], int]) -> int:
    """Do the work in the child, and turn every way out of it into a code."""
    try:
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except Interrupted as stopped:
        code = stopped.exit_code
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:  # noqa: BLE001 - the last frame of a process: print, then end
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code
