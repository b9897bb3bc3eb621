"""Several workers on one listening socket: started, replaced when they die, stopped together."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from polarcredits.server.log import STDERR, json_line, places

STOP_SECONDS = 15.0
"""How long workers may take to stop before they are killed."""
_TICK_SECONDS = 0.05
_QUICK_SECONDS = 5.0
_LONGEST_PAUSE = 30.0


def stopping_signals() -> list[signal.Signals]:
    """Return the signals that stop a server; SIGHUP does where nobody, such as nohup, has it ignored."""
    wanted = [signal.SIGTERM, signal.SIGINT]
    return wanted if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [*wanted, signal.SIGHUP]


class Supervisor:
    """Forks workers and watches over them.

    *work* is what a worker runs: it gets the end of a pipe that closes when this process is gone, and
    returns the worker's exit code. *gone* is told the id of each worker that has ended.
    """

    def __init__(
        self,
        work: Callable[[int], int],
        *,
        workers: int,
        listening: socket.socket,
        gone: Callable[[int], None],
    ) -> None:
        self._work = work
        self._workers = workers
        self._listening = listening
        self._gone = gone
        self._started: dict[int, float] = {}
        self._stopped_by: int | None = None
        self._pause = 0.0
        self._begin_after = 0.0
        self._alive, self._held = os.pipe()

    def run(self) -> int:
        """Serve until SIGTERM, SIGINT or SIGHUP; return the exit code: 130 after SIGINT, else 0."""
        for each in stopping_signals():
            signal.signal(each, self._stop)
        while self._stopped_by is None:
            if len(self._started) < self._workers and time.monotonic() >= self._begin_after:
                self._fork()
                continue
            self._bury()
            time.sleep(_TICK_SECONDS)
        self._finish()
        return 130 if self._stopped_by == signal.SIGINT else 0

    def _stop(self, sig: int, _frame: FrameType | None) -> None:
        self._stopped_by = self._stopped_by or sig

    def _fork(self) -> None:
        pid = os.fork()
        if pid:
            self._started[pid] = time.monotonic()
            return
        code = 1
        try:
            for each in stopping_signals():
                signal.signal(each, signal.SIG_DFL)
            os.close(self._held)
            code = 0 if self._stopped_by is not None else self._work(self._alive)
        finally:
            error = sys.exception()
            if error is not None:
                _tell("worker_failed", error=type(error).__name__, at=places(error))
            os._exit(code)

    def _bury(self) -> None:
        """Note which workers have ended. One that ended at once is replaced only after a while."""
        for pid, began in list(self._started.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            del self._started[pid]
            self._gone(pid)
            if self._stopped_by is not None:
                continue
            quick = time.monotonic() - began < _QUICK_SECONDS
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause or 0.5) if quick else 0.0
            self._begin_after = time.monotonic() + self._pause
            _tell("worker_died", worker=pid, status=os.waitstatus_to_exitcode(status))

    def _finish(self) -> None:
        """Stop listening, let the workers finish, and kill those that do not."""
        self._listening.close()
        self._signal(signal.SIGTERM)
        until = time.monotonic() + STOP_SECONDS
        while self._started and time.monotonic() < until:
            self._bury()
            time.sleep(_TICK_SECONDS)
        self._signal(signal.SIGKILL)
        for pid in self._started:
            os.waitpid(pid, 0)

    def _signal(self, sig: int) -> None:
        for pid in self._started:
            os.kill(pid, sig)


def _tell(event: str, **fields: object) -> None:
    """Write a line if stderr is there and takes it at once: nobody waits for a log, or ends for it."""
    with suppress(OSError):
        if select.select([], [STDERR], [], 0)[1]:
            os.write(STDERR, json_line(event, level="warning", **fields))
