"""Work in threads for the tasks of event loops, known until it is done whatever becomes of the task."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

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

    async def run_or_undo(self, work: Callable[[], T], undo: Callable[[T], object]) -> T:
        """Return what *work* returns; where the task is cancelled and will never know, *undo* it."""
        told = threading.Lock()
        done: list[T] = []

        def in_thread() -> T:
            done.append(work())
            if not told.acquire(blocking=False):
                undo(done[0])
            return done[0]

        try:
            return await self.run(in_thread)
        except asyncio.CancelledError:
            if not told.acquire(blocking=False):
                with suppress(RuntimeError):  # no thread could be started
                    self._begin(partial(undo, done[0]))
            raise

    async def run_surely(self, work: Callable[[], T]) -> T:
        """Return what *work* returns; it is done also if the task is cancelled, which does not wait."""
        return await asyncio.shield(self._begin(work))

    def _begin(self, work: Callable[[], T]) -> asyncio.Future[T]:
        mine = threading.Lock()

        def in_thread() -> T:
            try:
                return work()
            finally:
                self._begun.discard(mine)

        try:
            self._begun.add(mine)
            loop = asyncio.get_running_loop()
            begun: asyncio.Future[T] = loop.run_in_executor(None, copy_context().run, in_thread)
        except RuntimeError:
            self._begun.discard(mine)
            raise
        begun.add_done_callback(_look)
        return begun

    async def ended(self) -> None:
        """Wait until all of it is over; not for the threads of a parent, which a forked child has not."""
        while self._begun and self._process == os.getpid():
            await asyncio.sleep(_LOOK_SECONDS)


def _look(done: asyncio.Future[Any]) -> None:
    """Look at how it ended, where no task does: asyncio would complain."""
    if not done.cancelled():
        done.exception()
