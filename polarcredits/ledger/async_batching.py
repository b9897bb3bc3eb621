"""Group commit for asyncio: the promises of `batching`, for the tasks of one event loop."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from polarcredits.errors import DatabaseError
from polarcredits.ledger.answering import A, Q, answers_of, too_many, twin
from polarcredits.ledger.batching import Bounded, Stuck
from polarcredits.ledger.failing import closed


class AsyncGroup(Bounded[Q, A]):
    """Answers the requests of many tasks of one event loop together.

    *work* runs in a thread of the group's own, one batch at a time, while the loop gathers the next.
    A task that is cancelled before its request was taken is not executed, and gives up its place; one
    cancelled later was executed whole or, if its batch failed, not at all. A process does not wait for an
    idle group.
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
        self._queue: OrderedDict[asyncio.Future[A], Q] = OrderedDict()
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
        try:
            self._queue[future] = request
            if not self._busy:
                loop.call_soon(self._start, loop)
                self._busy = True
            return await future
        except BaseException:
            if future in self._queue:
                del self._queue[future]
                self._room.set()
            raise

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
        try:
            self._take(batch)
            if batch:
                self._hand_over(loop, batch)
        except BaseException as error:
            self._answer(loop, batch, partial(_twins, error, batch))
            raise

    def _take(self, batch: list[tuple[Q, asyncio.Future[A]]]) -> None:
        """Fill a batch from the queue; an interruption leaves nobody between the two."""
        while self._queue and len(batch) < self._most:
            future = next(iter(self._queue))
            if not future.done():
                batch.append((self._queue[future], future))
            del self._queue[future]
        self._room.set()
        if not batch:
            self._busy = False
            self._idle.set()

    def _hand_over(self, loop: asyncio.AbstractEventLoop, batch: list[tuple[Q, asyncio.Future[A]]]) -> None:
        requests = [request for request, _ in batch]
        try:
            running = loop.run_in_executor(self._thread, partial(answers_of, self._work), requests)
        except RuntimeError as error:
            if not self._closed:
                self._thread = _thread()
            self._answer(loop, batch, partial(_twins, _no_thread(error), batch))
        else:
            running.add_done_callback(partial(self._worked, loop, batch))
            if self._stuck is not None:
                self._bell = loop.call_later(self._stuck, self._send_away)

    def _send_away(self) -> None:
        """What is at work is stuck: nobody waits for its end, but for those whose requests it has."""
        self._is_stuck = True
        for future in self._queue:
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
        self._answer(loop, batch, partial(_outcome, running, batch))

    def _answer(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[tuple[Q, asyncio.Future[A]]],
        answers: Callable[[], Sequence[A | Exception]],
    ) -> None:
        """Answer a batch. Those who ask again at once, and who waits already, are the next one."""
        try:
            if self._bell is not None:
                self._bell.cancel()
            self._is_stuck = False
            for (_, future), answer in zip(batch, answers(), strict=True):
                _tell(future, answer)
        except BaseException as error:
            for _, future in batch:
                _tell(future, twin(error))
            raise
        finally:
            loop.call_soon(self._start, loop)


def _outcome(
    running: asyncio.Future[Sequence[A | Exception]], batch: Sequence[object]
) -> Sequence[A | Exception]:
    error = running.exception()
    return running.result() if error is None else _twins(error, batch)


def _twins(error: BaseException, batch: Sequence[object]) -> Sequence[Exception]:
    return [twin(error) for _ in batch]


def _tell(future: asyncio.Future[A], answer: A | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="polarcredits-group")


def _no_thread(error: RuntimeError) -> DatabaseError:
    told = DatabaseError(f"No thread to work in, nothing was done: {error}.")
    told.__cause__ = error
    return told
