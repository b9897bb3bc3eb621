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

A signal may raise in the main thread after any call, also while that thread leads. So who leads, and
who waits, changes hands by assignments alone or within one call: all who wait are let go by one. And
its handler may ask or close itself: neither waits for the thread that it interrupted.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from itertools import islice
from operator import attrgetter, methodcaller
from typing import Any, Generic
from weakref import WeakSet

from polarcredits.ledger.answering import UNTOLD, A, Q, Work, answers_of, too_many, twin
from polarcredits.ledger.failing import closed
from polarcredits.ledger.handlers import Here, from_a_handler

BUSY_SECONDS = 10.0
MOST = 1_000
WAITING = 10_000
_PAUSES = 20
_PAUSE_SECONDS = 0.0001
_gate = attrgetter("gate")
_release = methodcaller("release")


class _Ticket(Generic[Q, A]):
    """A request of a thread; `gate` is what it waits at, `leads` whether its thread is to work for all."""

    __slots__ = ("answer", "gate", "leads", "request")
    answer: A | BaseException

    def __init__(self, request: Q) -> None:
        self.request = request
        self.answer = UNTOLD
        self.gate: threading.Lock | None = None
        self.leads = False


class Stuck(Exception):
    """What is at work does not end: the request was not taken, and its caller may do it elsewhere."""


class Bounded(ABC, Generic[Q, A]):
    """What both kinds of group have: their work, their bounds, and a start anew in a forked child.

    *most* is the size of a batch, *waiting* how many may queue, *patience* how many seconds a caller
    waits for room in a full queue. After *stuck* seconds of one and the same batch, who waits for its
    end, and who comes before it, gets Stuck instead; for work that others can do meanwhile. *here* says
    which threads are at work on the same database.
    """

    def __init__(
        self,
        work: Work[Q, A],
        *,
        most: int = MOST,
        waiting: int = WAITING,
        patience: float = BUSY_SECONDS,
        stuck: float | None = None,
        here: Here | None = None,
    ) -> None:
        self._work = work
        self._most = most
        self._waiting = waiting
        self._patience = patience
        self._stuck = stuck
        self._here = here or Here()
        self._closed = False
        self.begin()
        _groups.add(self)

    @abstractmethod
    def begin(self) -> None:
        """Start with an empty queue."""


class Group(Bounded[Q, A]):
    """Answers the requests of many threads together; safe to share between all of them.

    The first caller leads: it runs *work* in its own thread, at once. Who comes meanwhile waits,
    and the first of those leads the next batch. After a batch of several, its successor waits at most
    two milliseconds, and only as long as more callers come. No thread is ever started.
    """

    def begin(self) -> None:
        """Start with an empty queue."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._watching = 0
        self._queue: deque[_Ticket[Q, A]] = deque()
        self._led = False
        self._began = 0.0
        self._answered = 0

    def ask(self, request: Q) -> A:
        """Return the answer to *request*, once its batch is committed.

        Raises what *work* returned or raised, DatabaseBusy if the queue stays full, Stuck, DatabaseError
        once closed or from a signal handler that interrupted its own thread at work. A thread interrupted
        while it waits withdraws its request if nobody took it yet.
        """
        here = self._here
        if here.at_work:
            raise from_a_handler()
        ticket: _Ticket[Q, A] = _Ticket(request)
        try:
            here.at_work = True
            with self._lock:
                if self._closed or len(self._queue) >= self._waiting:
                    self._admit()
                if self._led:
                    if self._is_stuck():
                        raise Stuck
                    self._queue_up(ticket)
                else:
                    ticket.leads = self._led = True
            if ticket.gate is not None:
                self._wait(ticket, ticket.gate)
            if ticket.leads:
                if self._queue or self._answered > 1:
                    self._lead(ticket)
                else:
                    self._lead_alone(ticket)
        except BaseException:
            self._leave(ticket)
            raise
        finally:
            here.at_work = False
        answer = ticket.answer
        if isinstance(answer, BaseException):
            raise twin(answer) if answer is UNTOLD else answer
        return answer

    def close(self) -> bool:
        """Refuse what comes from now on, and return when all that was accepted is answered.

        False, at once, from a signal handler that interrupted its own thread at work: what was accepted
        is still answered, when the handler has returned or by the other threads.
        """
        self._closed = True
        if self._here.at_work:
            return False
        self._here.alone(self._await_the_end)
        return True

    def _await_the_end(self) -> None:
        with self._lock:
            self._changed.notify_all()
            self._watch(lambda: not self._led)

    def _admit(self) -> None:
        """Wait for room in the queue."""
        free = self._watch(lambda: self._closed or len(self._queue) < self._waiting, self._patience)
        if self._closed:
            raise closed()
        if not free:
            raise too_many()

    def _watch(self, true: Callable[[], bool], timeout: float | None = None) -> bool:
        self._watching += 1
        try:
            return self._changed.wait_for(true, timeout)
        finally:
            self._watching -= 1

    def _queue_up(self, ticket: _Ticket[Q, A]) -> None:
        ticket.gate = threading.Lock()
        ticket.gate.acquire()
        self._queue.append(ticket)

    def _wait(self, ticket: _Ticket[Q, A], gate: threading.Lock) -> None:
        """Wait until the request is answered or its thread leads.

        Who is stuck is out of the queue before it is told: else it might be taken, and done twice.
        """
        while not gate.acquire(timeout=-1 if self._stuck is None else self._stuck):
            with self._lock:
                if self._is_stuck() and ticket in self._queue:
                    self._queue.remove(ticket)
                    raise Stuck

    def _is_stuck(self) -> bool:
        return self._stuck is not None and time.monotonic() - self._began > self._stuck

    def _leave(self, ticket: _Ticket[Q, A]) -> None:
        """Withdraw a request that nobody took; who was to lead lets the next one do it."""
        with self._lock:
            if ticket in self._queue:
                self._queue.remove(ticket)
            if ticket.leads:
                self._appoint(ticket)
            if self._watching:
                self._changed.notify_all()

    def _lead_alone(self, ticket: _Ticket[Q, A]) -> None:
        """Work for one beside whom nobody waits, as `_lead` would, with nothing in the way."""
        try:
            self._began = time.monotonic()
            (ticket.answer,) = self._work((ticket.request,))
        finally:
            with self._lock:
                self._answered = 1
                self._appoint(ticket)

    def _lead(self, ticket: _Ticket[Q, A]) -> None:
        """Work for this thread and for everybody who waits, answer them, and let the next one lead."""
        batch = [ticket]
        let_go = map(_release, map(_gate, islice(batch, 1, None)))
        try:
            if self._answered > 1:
                self._gather()
            if self._queue:
                self._take(batch)
            self._began = time.monotonic()
            answers = answers_of(self._work, [each.request for each in batch])
            for each, answer in zip(batch, answers, strict=True):
                each.answer = answer
        except BaseException as error:
            for each in batch:
                each.answer = twin(error)
            raise
        finally:
            any(let_go)
            with self._lock:
                self._answered = len(batch)
                self._appoint(ticket)

    def _gather(self) -> None:
        """Let those who were just answered ask again, as long as more of them come."""
        for _ in range(_PAUSES):
            before = len(self._queue)
            if before + 1 >= self._answered:
                return
            time.sleep(_PAUSE_SECONDS)
            if len(self._queue) == before:
                return

    def _take(self, batch: list[_Ticket[Q, A]]) -> None:
        """Fill a batch from the queue, in one step: an interruption leaves nobody between the two."""
        with self._lock:
            waiting, room = list(self._queue), self._most - len(batch)
            batch[1:], self._queue = waiting[:room], deque(waiting[room:])
            if self._watching:
                self._changed.notify_all()

    def _appoint(self, before: _Ticket[Q, A]) -> None:
        """Let the first of the queue lead, in the place of the one before."""
        if self._queue:
            heir = self._queue[0]
            before.leads, heir.leads = False, True
            try:
                self._queue.popleft()
            finally:
                _release(heir.gate)
        else:
            before.leads = self._led = False
        if self._watching:
            self._changed.notify_all()


_groups: WeakSet[Bounded[Any, Any]] = WeakSet()


def _forget_the_parent() -> None:
    for group in list(_groups):
        group.begin()


os.register_at_fork(after_in_child=_forget_the_parent)
