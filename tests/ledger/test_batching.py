"""Groups: who arrives meanwhile goes together, each with its own answer (no database here)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from polarcredits.errors import DatabaseBusy, DatabaseError, InsufficientCredits
from polarcredits.ledger.async_batching import AsyncGroup
from polarcredits.ledger.batching import Group, Stuck


class Desk:
    """Work that can be held up, so that callers gather; it remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Event()
        self.open.set()
        self.fails = False

    def __call__(self, requests: Sequence[int]) -> list[int | Exception]:
        """Double each number; refuse those below zero, each for itself."""
        self.batches.append(list(requests))
        assert self.open.wait(10)
        if self.fails:
            raise DatabaseError("The disk is full.", path="/")
        return [self._one(n) for n in requests]

    def _one(self, n: int) -> int | Exception:
        return n * 2 if n >= 0 else InsufficientCredits("ann", required=-n, available=0)


def until(true: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def waiting(group: Group[int, int], count: int) -> None:
    """Wait until so many requests queue."""
    until(lambda: len(group._queue) == count)


def gathered(pool: Executor, desk: Desk, group: Group[int, int]) -> tuple[Future[int], list[Future[int]]]:
    """Ask 1, which the closed desk holds up, and 2, 3 and 4, which queue behind it; return their calls."""
    first = pool.submit(group.ask, 1)
    until(lambda: desk.batches == [[1]])
    asked = [pool.submit(group.ask, n) for n in (2, 3, 4)]
    waiting(group, 3)
    return first, asked


def test_who_arrives_meanwhile_goes_together() -> None:
    """The first goes at once and alone; the others in the next batch, in their order."""
    desk = Desk()
    group = Group(desk)
    desk.open.clear()
    with ThreadPoolExecutor(10) as pool:
        first = pool.submit(group.ask, 1)
        until(lambda: desk.batches == [[1]])
        others = []
        for n in range(2, 6):
            others.append(pool.submit(group.ask, n))
            waiting(group, len(others))
        desk.open.set()
        assert [first.result(), *(other.result() for other in others)] == [2, 4, 6, 8, 10]
    assert desk.batches == [[1], [2, 3, 4, 5]]


def test_nobody_waits_for_what_is_stuck() -> None:
    """Who queues is sent away, who comes then too, with nothing done; afterwards all is as before."""
    desk = Desk()
    group = Group(desk, stuck=0.05)
    desk.open.clear()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(group.ask, 1)
        until(lambda: desk.batches == [[1]])
        queued = [pool.submit(group.ask, n) for n in (2, 3)]
        assert all(isinstance(each.exception(10), Stuck) for each in queued)
        with pytest.raises(Stuck):
            group.ask(4)
        assert not group._queue
        assert not first.done()
        desk.open.set()
        assert first.result(10) == 2
    assert group.ask(5) == 10
    assert desk.batches == [[1], [5]]


def test_who_is_told_that_it_is_stuck_cannot_be_taken_any_more() -> None:
    """Between the telling and the leaving a batch might begin: the request would be done twice."""
    queued: list[bool] = []

    class Watched(Group[int, int]):
        """Tells whether who leaves could still be taken."""

        def _leave(self, ticket: Any) -> None:
            queued.append(ticket in self._queue)
            super()._leave(ticket)

    desk = Desk()
    group = Watched(desk, stuck=0.05)
    desk.open.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(group.ask, 1)
        until(lambda: desk.batches == [[1]])
        assert isinstance(pool.submit(group.ask, 2).exception(10), Stuck)
        assert queued == [False]
        desk.open.set()
        assert first.result(10) == 2
    assert desk.batches == [[1]]


def test_who_comes_to_what_is_stuck_does_not_queue() -> None:
    """It is known to be stuck: not a moment is lost on it."""
    desk = Desk()
    group = Group(desk, stuck=30)
    desk.open.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(group.ask, 1)
        until(lambda: desk.batches == [[1]])
        group._began -= 31
        assert isinstance(pool.submit(group.ask, 2).exception(5), Stuck)
        desk.open.set()
        assert first.result(10) == 2


def test_who_waits_for_room_is_told_that_it_is_stuck() -> None:
    """When those who queue are sent away there is room, and nothing to wait for."""
    desk = Desk()
    group = Group(desk, waiting=1, stuck=0.3, patience=30)
    desk.open.clear()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(group.ask, 1)
        until(lambda: desk.batches == [[1]])
        second = pool.submit(group.ask, 2)
        waiting(group, 1)
        third = pool.submit(group.ask, 3)
        until(lambda: group._watching == 1)
        assert isinstance(second.exception(10), Stuck)
        assert isinstance(third.exception(10), Stuck)
        desk.open.set()
        assert first.result(10) == 2


def test_what_is_taken_is_waited_for_however_long() -> None:
    """Who goes elsewhere with a request that is at work would have it done twice."""
    desks = {True: threading.Event(), False: threading.Event()}
    begun: list[list[int]] = []

    def work(requests: Sequence[int]) -> list[int]:
        begun.append(list(requests))
        assert desks[len(requests) > 1].wait(10)
        return list(requests)

    group: Group[int, int] = Group(work, stuck=0.1)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(group.ask, 1)
        until(lambda: begun == [[1]])
        group._began += 60
        others = [pool.submit(group.ask, n) for n in (2, 3)]
        waiting(group, 2)
        desks[False].set()
        until(lambda: len(begun) == 2)
        time.sleep(0.3)
        assert not any(other.done() for other in others)
        desks[True].set()
        assert [first.result(10), *(other.result(10) for other in others)] == [1, 2, 3]


def test_tasks_wait_for_nothing_that_is_stuck() -> None:
    """As threads do not."""
    desk = Desk()

    async def main() -> None:
        group = AsyncGroup(desk, stuck=0.05)
        desk.open.clear()
        first = asyncio.create_task(group.ask(1))
        while not desk.batches:
            await asyncio.sleep(0)
        queued = [asyncio.create_task(group.ask(n)) for n in (2, 3)]
        told = await asyncio.gather(*queued, return_exceptions=True)
        assert all(isinstance(each, Stuck) for each in told)
        with pytest.raises(Stuck):
            await group.ask(4)
        assert not first.done()
        desk.open.set()
        assert await first == 2
        assert await group.ask(5) == 10
        await asyncio.sleep(0.1)
        assert await group.ask(6) == 12
        await group.close()

    asyncio.run(main())
    assert desk.batches == [[1], [5], [6]]


def test_a_task_that_waits_for_room_is_told_that_it_is_stuck() -> None:
    """As a thread is: when those who queue are sent away there is room."""
    desk = Desk()

    async def main() -> None:
        group = AsyncGroup(desk, waiting=1, stuck=0.2, patience=30)
        desk.open.clear()
        first = asyncio.create_task(group.ask(1))
        while not desk.batches:
            await asyncio.sleep(0)
        others = [asyncio.create_task(group.ask(n)) for n in (2, 3)]
        async with asyncio.timeout(10):
            told = await asyncio.gather(*others, return_exceptions=True)
        assert all(isinstance(each, Stuck) for each in told)
        desk.open.set()
        assert await first == 2
        await group.close()

    asyncio.run(main())
    assert desk.batches == [[1]]


def test_what_moves_on_is_not_stuck() -> None:
    """However long somebody queues, behind batches that each end in time."""
    with ThreadPoolExecutor(8) as pool:
        group = Group(_slowly, most=1, stuck=0.1)
        assert list(pool.map(group.ask, range(40))) == list(range(40))


def test_one_refused_among_many_has_its_own_error() -> None:
    """The others get their answers."""
    desk = Desk()
    group = Group(desk)
    desk.open.clear()
    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(group.ask, n) for n in (1, -7, 3)]
        until(lambda: len(group._queue) == 2)
        desk.open.set()
        assert (asked[0].result(), asked[2].result()) == (2, 6)
        with pytest.raises(InsufficientCredits) as refused:
            asked[1].result()
        assert refused.value.required == 7


def test_what_work_raises_goes_to_every_caller_of_the_batch() -> None:
    """Each gets an error of its own with the fields of the first; the next batch goes on."""
    desk = Desk()
    group = Group(desk)
    desk.open.clear()
    with ThreadPoolExecutor(10) as pool:
        first, asked = gathered(pool, desk, group)
        desk.fails = True
        desk.open.set()
        errors = [call.exception() for call in [first, *asked]]
    assert len({id(error) for error in errors}) == 4
    for error in errors:
        assert isinstance(error, DatabaseError)
        assert (error.message, error.fields) == ("The disk is full.", {"path": "/"})
    desk.fails = False
    assert group.ask(5) == 10


def test_a_full_queue_makes_callers_wait_and_then_refuses() -> None:
    """What was refused was not done; what waited for room is."""
    desk = Desk()
    group = Group(desk, waiting=2, patience=0.2)
    desk.open.clear()
    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(group.ask, 1)]
        until(lambda: desk.batches == [[1]])
        for n in (2, 3):
            asked.append(pool.submit(group.ask, n))
        waiting(group, 2)
        with pytest.raises(DatabaseBusy):
            group.ask(4)
        last = pool.submit(group.ask, 5)
        until(lambda: group._watching == 1)
        desk.open.set()
        asked.append(last)
        assert [call.result() for call in asked] == [2, 4, 6, 10]
    assert sorted(n for batch in desk.batches for n in batch) == [1, 2, 3, 5]


def test_a_batch_has_an_upper_size() -> None:
    """Nobody waits for a transaction without end."""
    desk = Desk()
    group = Group(desk, most=2)
    desk.open.clear()
    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(group.ask, n) for n in range(6)]
        waiting(group, 5)
        desk.open.set()
        assert sorted(call.result() for call in asked) == [0, 2, 4, 6, 8, 10]
    assert max(map(len, desk.batches)) == 2


def test_close_answers_what_was_accepted_and_refuses_the_rest() -> None:
    """A clean end for threads."""
    desk = Desk()
    group = Group(desk)
    desk.open.clear()
    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(group.ask, n) for n in (1, 2, 3)]
        waiting(group, 2)
        closing = pool.submit(group.close)
        until(lambda: group._closed)
        with pytest.raises(DatabaseError, match="closed"):
            group.ask(4)
        assert not closing.done()
        desk.open.set()
        closing.result()
        assert sorted(call.result() for call in asked) == [2, 4, 6]


@pytest.mark.parametrize("raised", [KeyboardInterrupt, TimeoutError])
def test_an_interrupted_leader_tells_the_others(raised: type[BaseException]) -> None:
    """In words of ours: what a signal handler raises is its own thread's alone. The next caller is served."""
    desk = Desk()

    def work(requests: Sequence[int]) -> list[int | Exception]:
        answers = desk(requests)
        if 2 in requests:
            raise raised
        return answers

    group: Group[int, int] = Group(work)
    desk.open.clear()
    with ThreadPoolExecutor(10) as pool:
        first, asked = gathered(pool, desk, group)
        desk.open.set()
        errors = [call.exception() for call in asked]
    assert first.result() == 2
    assert sorted(type(error).__name__ for error in errors) == sorted(
        [raised.__name__, "DatabaseError", "DatabaseError"]
    )
    assert group.ask(5) == 10


@pytest.mark.parametrize(("threads", "seconds"), [(0, 0), (3, 0.0001), (12, 0.001)])
def test_signals_in_the_main_thread_leave_nobody_waiting(threads: int, seconds: float) -> None:
    """Wherever they hit it, alone, in the lead or in the queue: every thread is answered on and on."""
    script = """
import contextlib, os, random, signal, sys, threading, time
from polarcredits.errors import DatabaseError
from polarcredits.ledger.batching import Group
threads, seconds = int(sys.argv[1]), float(sys.argv[2])
def work(requests):
    if seconds:
        time.sleep(seconds)
    return list(requests)
group, answered = Group(work), [0] * threads
def ask(number):
    while True:
        with contextlib.suppress(DatabaseError):
            assert group.ask(number) == number
        answered[number] += 1
class Alarm(BaseException):
    pass
def ring(*_):
    raise Alarm
signal.signal(signal.SIGALRM, ring)
for number in range(threads):
    threading.Thread(target=ask, args=(number,), daemon=True).start()
for _ in range(20):
    for _ in range(100):
        with contextlib.suppress(Alarm):
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00005, 0.002))
            while True:
                group.ask(0)
    before, until = list(answered), time.monotonic() + 5
    while any(now == then for now, then in zip(answered, before)) or group._led and not threads:
        if time.monotonic() > until:
            os._exit(1)
        time.sleep(0.001)
os._exit(0)
"""
    ran = subprocess.run([sys.executable, "-c", script, str(threads), str(seconds)], timeout=60)
    assert ran.returncode == 0


def test_an_interrupted_caller_withdraws_what_nobody_took() -> None:
    """Its request is not executed later behind its back."""
    desk = Desk()
    group = Group(desk)
    desk.open.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(group.ask, 1)
        until(lambda: desk.batches == [[1]])
        with _alarm(0.05), pytest.raises(_Alarm):
            group.ask(2)
        desk.open.set()
        assert first.result() == 2
    assert group.ask(3) == 6
    assert desk.batches == [[1], [3]]


class _Alarm(BaseException):
    pass


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise in the main thread after a while."""

    def ring(*_: object) -> None:
        raise _Alarm

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_whoever_waits_for_room_hears_of_it() -> None:
    """Also one who woke once to a queue that others had filled again."""
    patience = 5.0
    group: Group[int, int] = Group(_slowly, most=1, waiting=1, patience=patience)
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(group.ask, range(8))) == list(range(8))
    assert time.monotonic() - began < patience


def test_room_is_given_as_soon_as_a_batch_is_taken() -> None:
    """Not only when it is done."""
    turns, batches = threading.Semaphore(0), []

    def work(requests: Sequence[int]) -> list[int]:
        batches.append(list(requests))
        assert turns.acquire(timeout=10)
        return list(requests)

    group: Group[int, int] = Group(work, waiting=2)
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(group.ask, 1)]
        until(lambda: batches == [[1]])
        asked += [pool.submit(group.ask, n) for n in (2, 3)]
        waiting(group, 2)
        asked += [pool.submit(group.ask, n) for n in (4, 5)]
        until(lambda: group._watching == 2)
        turns.release()
        until(lambda: len(batches) == 2 and group._watching == 0)
        turns.release(5)
        assert [call.result() for call in asked] == [1, 2, 3, 4, 5]


def _slowly(requests: Sequence[int]) -> list[int]:
    time.sleep(0.02)
    return list(requests)


def test_many_threads_each_get_their_own() -> None:
    """No answer is lost or exchanged."""
    desk = Desk()
    group = Group(desk)
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(group.ask, range(5000))) == [n * 2 for n in range(5000)]
    assert sum(map(len, desk.batches)) == 5000


def test_a_forked_child_starts_afresh() -> None:
    """A fork while a batch is at work leaves the child's group usable."""
    script = """
import os, threading
from polarcredits.ledger.batching import Group
began, go = threading.Event(), threading.Event()
def work(requests):
    if 1 in requests:
        began.set()
        go.wait()
    return list(requests)
group = Group(work)
threading.Thread(target=group.ask, args=(1,)).start()
began.wait()
child = os.fork()
if child == 0:
    os._exit(0 if group.ask(2) == 2 else 1)
go.set()
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=20, env=dict(os.environ)).returncode == 0


def test_tasks_go_together() -> None:
    """Those who ask in one pass of the loop are one batch; those who come meanwhile the next."""
    desk = Desk()

    async def main() -> None:
        group = AsyncGroup(desk)
        desk.open.clear()
        first = [asyncio.create_task(group.ask(n)) for n in (1, 2)]
        while not desk.batches:
            await asyncio.sleep(0)
        second = [asyncio.create_task(group.ask(n)) for n in (3, -4, 5)]
        await asyncio.sleep(0)
        desk.open.set()
        assert [await task for task in (*first, second[0], second[2])] == [2, 4, 6, 10]
        with pytest.raises(InsufficientCredits):
            await second[1]
        await group.close()

    asyncio.run(main())
    assert desk.batches == [[1, 2], [3, -4, 5]]


def test_a_cancelled_task_that_was_not_taken_is_not_executed() -> None:
    """And one that was taken is executed, though nobody waits any more."""
    desk = Desk()

    async def main() -> None:
        group = AsyncGroup(desk)
        desk.open.clear()
        taken = asyncio.create_task(group.ask(1))
        while not desk.batches:
            await asyncio.sleep(0)
        queued, kept = asyncio.create_task(group.ask(2)), asyncio.create_task(group.ask(3))
        await asyncio.sleep(0)
        taken.cancel()
        queued.cancel()
        desk.open.set()
        assert await kept == 6
        results = await asyncio.gather(taken, queued, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        await group.close()

    asyncio.run(main())
    assert desk.batches == [[1], [3]]


def test_cancelled_tasks_leave_their_places_to_others() -> None:
    """They turn nobody away who is still there, and who waits for room hears of it at once."""
    desk = Desk()

    async def main() -> None:
        group = AsyncGroup(desk, waiting=2, patience=30)
        desk.open.clear()
        first = asyncio.create_task(group.ask(1))
        while not desk.batches:
            await asyncio.sleep(0)
        gone = [asyncio.create_task(group.ask(n)) for n in (2, 3)]
        waits = asyncio.create_task(group.ask(4))
        await asyncio.sleep(0)
        assert len(group._queue) == 2
        for task in gone:
            task.cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(*gone, return_exceptions=True)
            while list(group._queue.values()) != [4]:
                await asyncio.sleep(0)
        desk.open.set()
        assert [await first, await waits] == [2, 8]
        await group.close()

    asyncio.run(main())
    assert desk.batches == [[1], [4]]


def test_tasks_share_the_failure_of_their_batch() -> None:
    """Each task has an error of its own; the next batch goes on."""
    desk = Desk()
    desk.fails = True

    async def main() -> None:
        group = AsyncGroup(desk)
        errors = await asyncio.gather(*(group.ask(n) for n in range(3)), return_exceptions=True)
        assert [str(error) for error in errors] == ["The disk is full."] * 3
        desk.fails = False
        assert await group.ask(1) == 2
        await group.close()
        with pytest.raises(DatabaseError, match="closed"):
            await group.ask(1)

    asyncio.run(main())


def test_closing_waits_for_tasks_that_were_accepted() -> None:
    """They are answered, not dropped."""
    desk = Desk()

    async def main() -> None:
        group = AsyncGroup(desk, most=1)
        tasks = [asyncio.create_task(group.ask(n)) for n in range(3)]
        await asyncio.sleep(0)
        await group.close()
        assert [await task for task in tasks] == [0, 2, 4]

    asyncio.run(main())


def test_tasks_wait_for_room() -> None:
    """A full queue is bounded in time for tasks too."""
    desk = Desk()

    async def main() -> None:
        group = AsyncGroup(desk, waiting=1, patience=0.2)
        desk.open.clear()
        first = asyncio.create_task(group.ask(1))
        while not desk.batches:
            await asyncio.sleep(0)
        second = asyncio.create_task(group.ask(2))
        await asyncio.sleep(0)
        with pytest.raises(DatabaseBusy):
            await group.ask(3)
        third = asyncio.create_task(group.ask(4))
        await asyncio.sleep(0)
        desk.open.set()
        assert [await task for task in (first, second, third)] == [2, 4, 8]
        await group.close()

    asyncio.run(main())
    assert desk.batches == [[1], [2], [4]]


def test_one_group_serves_one_loop_after_the_other() -> None:
    """A second event loop may use the group once the first is closed, not before."""
    desk = Desk()
    group = AsyncGroup(desk)
    assert asyncio.run(group.ask(1)) == 2
    assert asyncio.run(group.ask(2)) == 4
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(group.ask(3)) == 6
    with pytest.raises(RuntimeError, match="event loop"):
        asyncio.run(group.ask(4))
    loop.run_until_complete(group.close())
    loop.close()


def test_where_no_thread_can_be_started_tasks_are_told() -> None:
    """Nothing was done, nothing waits, and nothing is done later when there are threads again."""
    desk = Desk()

    async def main() -> None:
        group = AsyncGroup(desk, most=1)
        before = threading.stack_size(2**46)
        try:
            told = await asyncio.gather(group.ask(1), group.ask(2), return_exceptions=True)
        finally:
            threading.stack_size(before)
        assert [type(each) for each in told] == [DatabaseError] * 2
        assert "nothing was done" in str(told[0])
        assert desk.batches == []
        assert await group.ask(3) == 6
        await group.close()

    asyncio.run(asyncio.wait_for(main(), 20))
    assert desk.batches == [[3]]


def test_tasks_that_outlive_the_main_thread_are_told() -> None:
    """When the interpreter takes no more work they get an error, and closing comes to an end."""
    script = """
import asyncio, threading
from polarcredits.errors import DatabaseError
from polarcredits.ledger.async_batching import AsyncGroup
async def main():
    group = AsyncGroup(list)
    assert await group.ask(1) == 1
    asked.set()
    threading.main_thread().join()
    try:
        await group.ask(2)
    except DatabaseError as error:
        print(error)
    await group.close()
    print("closed")
asked = threading.Event()
threading.Thread(target=asyncio.run, args=(main(),)).start()
asked.wait()
"""
    ran = subprocess.run([sys.executable, "-c", script], timeout=20, capture_output=True, text=True)
    assert ran.stdout.splitlines()[1:] == ["closed"], ran.stderr
    assert "nothing was done" in ran.stdout


def test_closing_on_another_loop_waits_for_what_is_at_work() -> None:
    """So that its connection is not closed under it; who only queued gets an error."""
    desk = Desk()
    group = AsyncGroup(desk, most=1)
    desk.open.clear()

    async def ask() -> list[int | BaseException]:
        return list(await asyncio.gather(*(group.ask(n) for n in (1, 2, 3)), return_exceptions=True))

    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(asyncio.run, ask())
        until(lambda: desk.batches == [[1]])
        closing = pool.submit(asyncio.run, group.close())
        until(lambda: group._closed)
        assert not closing.done()
        desk.open.set()
        closing.result(20)
        told = asked.result(20)
    assert told[0] == 2
    assert [type(each) for each in told[1:]] == [DatabaseError] * 2
    assert desk.batches == [[1]]
