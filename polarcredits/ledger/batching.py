"""Group commit: what many callers ask for at the same moment is answered together.

An fsync costs the same for one request or a thousand. A group hands whatever has gathered to its
*work*, which does all of it in one database transaction and returns one answer a request, in their
order, only after the commit. A caller who finds nobody at work starts at once, alone if it is alone,
and who arrives meanwhile goes with the next batch. Only after a batch of several is the next one not
taken before those who were answered had a moment to ask again: else the first of them to come back
would have a commit for itself each time, while all the others wait for it.

- Each caller gets its own answer, or its own error: an Exception that *work* returns in the place
  of an answer is raised to that caller and to nobody else.
- What *work* raises goes to every caller of the batch.
- The queue is bounded. Where it is full the caller waits for room, at most `patience` seconds, and
  then gets DatabaseBusy: not taken, nothing done.
- After `close` what had been accepted is answered, and whoever comes later gets DatabaseError.

`Group` is for threads, `AsyncGroup` for the tasks of one event loop. Both survive a fork: the child
starts with an empty queue, and what its parent was doing stays the parent's.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from polarcredits.errors import DatabaseBusy, DatabaseError

Q = TypeVar("Q")
A = TypeVar("A")
Work = Callable[[Sequence[Q]], Sequence[A | Exception]]
BUSY_SECONDS = 10.0
MOST = 1_000
WAITING = 10_000
_PAUSES = 20
_PAUSE_SECONDS = 0.0001


class _Ticket(Generic[Q, A]):
    """A request of a thread; `gate` is what it waits at, `leads` whether its thread works next."""

    __slots__ = ("answer", "gate", "leads", "request")
    answer: A | Exception

    def __init__(self, request: Q) -> None:
        self.request = request
        self.gate: threading.Lock | None = None
        self.leads = False


class Group(Generic[Q, A]):
    """Answers the requests of many threads together; safe to share between all of them.

    The first caller leads: it runs *work* in its own thread, at once. Who comes meanwhile waits,
    and the first of those leads the next batch. After a batch of several, its successor waits at most
    two milliseconds, and only as long as more callers come. No thread is ever started.

    *most* is the size of a batch, *waiting* how many may queue, *patience* how many seconds a caller
    waits for room in a full queue.
    """

    def __init__(
        self,
        work: Work[Q, A],
        *,
        most: int = MOST,
        waiting: int = WAITING,
        patience: float = BUSY_SECONDS,
    ) -> None:
        self._work = work
        self._most = most
        self._waiting = waiting
        self._patience = patience
        self._closed = False
        self._begin()
        _groups.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._queue: deque[_Ticket[Q, A]] = deque()
        self._led = False
        self._crowded = False
        self._answered = 0

    def ask(self, request: Q) -> A:
        """Return the answer to *request*, once its batch is committed.

        Raises what *work* returned or raised, DatabaseBusy if the queue stays full, DatabaseError
        once closed. A thread interrupted while it waits withdraws its request if nobody took it yet.
        """
        ticket: _Ticket[Q, A] = _Ticket(request)
        with self._lock:
            if self._closed or len(self._queue) >= self._waiting:
                self._admit()
            leads = not self._led
            self._led = True
            self._queue.append(ticket)
            if not leads:
                ticket.gate = threading.Lock()
                ticket.gate.acquire()
        if ticket.gate is not None:
            leads = self._wait(ticket, ticket.gate)
        if leads:
            self._gather()
            self._lead()
        if isinstance(ticket.answer, Exception):
            raise ticket.answer
        return ticket.answer

    def close(self) -> None:
        """Refuse what comes from now on, and return when all that was accepted is answered."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._led)

    def _admit(self) -> None:
        """Wait for room in the queue."""
        self._crowded = True
        free = self._changed.wait_for(
            lambda: self._closed or len(self._queue) < self._waiting, timeout=self._patience
        )
        if self._closed:
            raise _closed()
        if not free:
            raise _too_many()

    def _wait(self, ticket: _Ticket[Q, A], gate: threading.Lock) -> bool:
        """Return when the ticket is answered (False) or is to lead (True)."""
        answered = False
        try:
            answered = gate.acquire()
        finally:
            if not answered:
                self._leave(ticket)
        return ticket.leads

    def _leave(self, ticket: _Ticket[Q, A]) -> None:
        with self._lock:
            if ticket in self._queue:
                self._queue.remove(ticket)
                if ticket.leads:
                    self._appoint()

    def _gather(self) -> None:
        """Let those who were just answered ask again, as long as more of them come."""
        for _ in range(_PAUSES):
            before = len(self._queue)
            if before >= self._answered:
                return
            time.sleep(_PAUSE_SECONDS)
            if len(self._queue) == before:
                return

    def _lead(self) -> None:
        """Work for everybody who waits, answer them, and let the next of the queue lead."""
        with self._lock:
            queue = self._queue
            batch = [queue.popleft() for _ in range(min(len(queue), self._most))]
            if self._crowded:
                self._crowded = False
                self._changed.notify_all()
        try:
            answers = _answers(self._work, [ticket.request for ticket in batch])
            for ticket, answer in zip(batch, answers, strict=True):
                ticket.answer = answer
        except BaseException as error:
            for ticket in batch:
                ticket.answer = _twin(error)
            raise
        finally:
            for ticket in batch:
                if ticket.gate is not None and not ticket.leads:
                    ticket.gate.release()
            with self._lock:
                self._answered = len(batch)
                self._appoint()

    def _appoint(self) -> None:
        if not self._queue:
            self._led = False
            if self._closed:
                self._changed.notify_all()
            return
        heir = self._queue[0]
        heir.leads = True
        if heir.gate is not None:
            heir.gate.release()


class AsyncGroup(Generic[Q, A]):
    """Answers the requests of many tasks of one event loop together.

    *work* runs in a thread of the group's own, one batch at a time, while the loop gathers the next.
    A task that is cancelled before its request was taken is not executed; one cancelled later was
    executed whole or, if its batch failed, not at all. A process does not wait for an idle group.
    """

    def __init__(
        self,
        work: Work[Q, A],
        *,
        most: int = MOST,
        waiting: int = WAITING,
        patience: float = BUSY_SECONDS,
    ) -> None:
        self._work = work
        self._most = most
        self._waiting = waiting
        self._patience = patience
        self._closed = False
        self._begin()
        _groups.add(self)

    def _begin(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="polarcredits-group")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bind(None)

    def _bind(self, loop: asyncio.AbstractEventLoop | None) -> None:
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("An open async ledger belongs to the event loop that used it first.")
        self._loop = loop
        self._queue: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._busy = False
        self._room = asyncio.Event()
        self._idle = asyncio.Event()

    async def ask(self, request: Q) -> A:
        """Return the answer to *request*, once its batch is committed; raises as `Group.ask` does."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind(loop)
        if self._closed or len(self._queue) >= self._waiting:
            await self._admit()
        future: asyncio.Future[A] = loop.create_future()
        self._queue.append((request, future))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._start, loop)
        return await future

    async def close(self) -> None:
        """Refuse what comes from now on, and return when all that was accepted is answered."""
        self._closed = True
        self._room.set()
        while self._busy and asyncio.get_running_loop() is self._loop:
            self._idle.clear()
            await self._idle.wait()
        self._thread.shutdown(wait=False)

    async def _admit(self) -> None:
        """Wait for room in the queue."""
        try:
            async with asyncio.timeout(self._patience):
                while not self._closed and len(self._queue) >= self._waiting:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            raise _too_many() from None
        if self._closed:
            raise _closed()

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
        running = loop.run_in_executor(self._thread, partial(_answers, self._work), requests)
        running.add_done_callback(partial(self._answer, loop, batch))

    def _answer(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[tuple[Q, asyncio.Future[A]]],
        running: asyncio.Future[Sequence[A | Exception]],
    ) -> None:
        """Answer a batch. Those who ask again at once, and who waits already, are the next one."""
        error = running.exception()
        answers = running.result() if error is None else [_twin(error) for _ in batch]
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        loop.call_soon(self._start, loop)


def _answers(work: Work[Q, A], requests: Sequence[Q]) -> Sequence[A | Exception]:
    answers = work(requests)
    if len(answers) != len(requests):
        raise ValueError(f"{len(requests)} requests have {len(answers)} answers")
    return answers


def _twin(error: BaseException) -> Exception:
    """Return what one of several callers is told of the failure of their batch: its own object."""
    if not isinstance(error, Exception):
        told: Exception = DatabaseError("Interrupted before the commit was known; look before you repeat.")
    else:
        told = error.__class__.__new__(error.__class__, *error.args)
        told.__dict__.update(error.__dict__)
    told.__cause__ = error
    return told


def _closed() -> DatabaseError:
    return DatabaseError("The ledger is closed; open it again.")


def _too_many() -> DatabaseBusy:
    return DatabaseBusy("Too many requests wait for the database; try again.")


_groups: WeakSet[Group[Any, Any] | AsyncGroup[Any, Any]] = WeakSet()


def _forget_the_parent() -> None:
    for group in list(_groups):
        group._begin()


os.register_at_fork(after_in_child=_forget_the_parent)
