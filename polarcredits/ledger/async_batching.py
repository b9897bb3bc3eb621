"""Group commit for asyncio: the promises of `batching`, for the tasks of one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from polarcredits.errors import DatabaseError
from polarcredits.ledger.answering import A, Q, answers_of, too_many, twin
from polarcredits.ledger.batching import Bounded, Stuck
from polarcredits.ledger.failing import closed


class AsyncGroup(Bounded[Q, A]):
    """Answers the requests of many tasks of one event loop together.

    *work* runs in a thread of the group's own, one batch at a time, while the loop gathers the next.
    A task that is cancelled before its request was taken is not executed; one cancelled later was
    executed whole or, if its batch failed, not at all. A process does not wait for an idle group.
    """

    def begin(self) -> None:
        """Start with an empty queue and a thread of its own."""
        self._thread = _thread()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bind(None)

    def _bind(self, loop: asyncio.AbstractEventLoop | None) -> None:
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("An open async ledger belongs to the event loop that used it first.")
        self._loop = loop
        self._queue: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._busy = False
        self._is_stuck = False
        self._bell: asyncio.TimerHandle | None = None
        self._room = asyncio.Event()
        self._idle = asyncio.Event()

    async def ask(self, request: Q) -> A:
        """Return the answer to *request*, once its batch is committed; raises as `Group.ask` does."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind(loop)
        if self._closed or len(self._queue) >= self._waiting:
            await self._admit()
        if self._is_stuck:
            raise Stuck
        future: asyncio.Future[A] = loop.create_future()
        self._queue.append((request, future))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._start, loop)
        return await future

    async def close(self) -> None:
        """Refuse what comes from now on, and return when all that was accepted is answered.

        Called on another event loop it waits for what is at work; those who only queue are refused.
        """
        self._closed = True
        self._room.set()
        while self._busy and asyncio.get_running_loop() is self._loop:
            self._idle.clear()
            await self._idle.wait()
        self._thread.shutdown()

    async def _admit(self) -> None:
        """Wait for room in the queue."""
        try:
            async with asyncio.timeout(self._patience):
                while not self._closed and len(self._queue) >= self._waiting:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            raise too_many() from None
        if self._closed:
            raise closed()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give the thread the next batch: all who wait and were not cancelled."""
        batch: list[tuple[Q, asyncio.Future[A]]] = []
        while self._queue and len(batch) < self._most:
            waiter = self._queue.popleft()
            if not waiter[1].done():
                batch.append(waiter)
        self._room.set()
        if not batch:
            self._busy = False
            self._idle.set()
            return
        requests = [request for request, _ in batch]
        try:
            running = loop.run_in_executor(self._thread, partial(answers_of, self._work), requests)
        except RuntimeError as error:
            if not self._closed:
                self._thread = _thread()
            self._answer(loop, batch, [_no_thread(error) for _ in batch])
        else:
            running.add_done_callback(partial(self._worked, loop, batch))
            if self._stuck is not None:
                self._bell = loop.call_later(self._stuck, self._send_away)

    def _send_away(self) -> None:
        """What is at work is stuck: nobody waits for its end, but for those whose requests it has."""
        self._is_stuck = True
        for _, future in self._queue:
            if not future.done():
                future.set_exception(Stuck())
        self._queue.clear()
        self._room.set()

    def _worked(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[tuple[Q, asyncio.Future[A]]],
        running: asyncio.Future[Sequence[A | Exception]],
    ) -> None:
        error = running.exception()
        self._answer(loop, batch, running.result() if error is None else [twin(error) for _ in batch])

    def _answer(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[tuple[Q, asyncio.Future[A]]],
        answers: Sequence[A | Exception],
    ) -> None:
        """Answer a batch. Those who ask again at once, and who waits already, are the next one."""
        if self._bell is not None:
            self._bell.cancel()
        self._is_stuck = False
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        loop.call_soon(self._start, loop)


def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="polarcredits-group")


def _no_thread(error: RuntimeError) -> DatabaseError:
    told = DatabaseError(f"No thread to work in, nothing was done: {error}.")
    told.__cause__ = error
    return told
