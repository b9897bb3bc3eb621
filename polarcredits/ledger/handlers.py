"""Signal handlers that call the ledger while it is at work in the thread that they interrupted.

A handler runs between any two steps of the main thread, which goes on when it returns. So it must never
wait for what only that thread can give: a lock that it holds, a batch that it leads, a row that it changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from polarcredits.errors import DatabaseError

P = ParamSpec("P")
T = TypeVar("T")


class Here(threading.local):
    """Whether this thread is at work on a database. It changes by assignments alone, in one frame."""

    at_work = False

    def alone(self, work: Callable[P, T], *given: P.args, **options: P.kwargs) -> T:
        """Run *work*. Raises DatabaseError, at once, in a handler that interrupted other work here."""
        if self.at_work:
            raise from_a_handler()
        try:
            self.at_work = True
            return work(*given, **options)
        finally:
            self.at_work = False


def from_a_handler() -> DatabaseError:
    """Return what a handler gets that interrupted the ledger's own work."""
    return DatabaseError(
        "Called while the ledger is at work in this very thread, as by a signal handler that interrupted it:"
        " nothing was done. Let the handler set a flag, or raise, and call the ledger after it."
    )
