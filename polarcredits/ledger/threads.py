"""Work in threads for the tasks of event loops, known until it is done whatever becomes of the task."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_LOOK_SECONDS = 0.001


class Threads:
    """Runs what a task wants in a thread. What had not begun when its task was cancelled does not begin.

    Each piece of work has a lock, which is taken once: by the thread that begins it, or by the task that
    gives it up. Whoever has it says when the work is over: a loop that has stopped cannot.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._begun: set[threading.Lock] = set()

    async def run(self, work: Callable[P, T], *given: P.args, **options: P.kwargs) -> T:
        """Return what *work* returns."""
        mine = threading.Lock()

        def in_thread() -> T:
            if not mine.acquire(blocking=False):
                raise asyncio.CancelledError
            try:
                return work(*given, **options)
            finally:
                self._begun.discard(mine)

        try:
            self._begun.add(mine)
            return await asyncio.to_thread(in_thread)
        finally:
            if mine.acquire(blocking=False):
                self._begun.discard(mine)

    async def ended(self) -> None:
        """Wait until all of it is over; not for the threads of a parent, which a forked child has not."""
        while self._begun and self._process == os.getpid():
            await asyncio.sleep(_LOOK_SECONDS)
