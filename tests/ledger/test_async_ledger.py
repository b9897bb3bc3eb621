"""The asyncio twin, where tasks end otherwise than they began: cancelled, or left on a loop that stopped."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polarcredits.errors import InsufficientCredits
from polarcredits.ledger.async_ledger import AsyncLedger
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.threads import Threads
from tests.ledger.worlds import catalog


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[AsyncLedger]:
    """A twin with a user."""
    plain = Ledger(f"sqlite:///{tmp_path / 'credits.db'}", catalog())
    plain.add_user("ann")
    yield AsyncLedger(plain)
    plain.close()


def test_closing_does_not_wait_for_a_loop_that_stopped(ledger: AsyncLedger) -> None:
    """It waits for the thread, which ends by itself; the task has its answer when its loop goes on."""

    async def begin() -> asyncio.Task[object]:
        task: asyncio.Task[object] = asyncio.create_task(ledger.balance("ann"))
        await asyncio.sleep(0)
        return task

    async def close() -> None:
        async with asyncio.timeout(10):
            await ledger.close()

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(begin())
    asyncio.run(close())
    loop.run_until_complete(asyncio.wait([task]))
    assert task.exception() is None
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_closing_waits_for_the_thread_of_a_cancelled_task(ledger: AsyncLedger) -> None:
    """What it has begun is done before the connections are closed."""
    begun, held = threading.Event(), threading.Event()
    open_at_the_end = []

    def work() -> None:
        begun.set()
        assert held.wait(10)
        open_at_the_end.append(not ledger._ledger.database._closed)

    async def main() -> None:
        task = asyncio.create_task(ledger._run(work))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.wait([task])
        closing = asyncio.create_task(ledger.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        held.set()
        await closing

    asyncio.run(main())
    assert open_at_the_end == [True]


def test_what_does_not_begin_is_not_waited_for() -> None:
    """Neither what was cancelled before a thread was free, nor what got no thread at all."""
    held = threading.Event()
    done: list[int] = []

    async def main() -> None:
        threads, loop = Threads(), asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        first = asyncio.create_task(threads.run(held.wait, 10))
        second = asyncio.create_task(threads.run(done.append, 2))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        held.set()
        async with asyncio.timeout(10):
            await threads.ended()
        assert await first
        await loop.shutdown_default_executor()
        with pytest.raises(RuntimeError):
            await threads.run(done.append, 3)
        async with asyncio.timeout(10):
            await threads.ended()

    asyncio.run(main())
    assert done == []


def test_what_got_no_thread_is_not_done_later() -> None:
    """Its task was told, and might have asked again."""
    done: list[int] = []

    async def main() -> None:
        threads = Threads()
        before = threading.stack_size(2**46)
        try:
            with pytest.raises(RuntimeError):
                await threads.run(done.append, 1)
        finally:
            threading.stack_size(before)
        await threads.run(done.append, 2)

    asyncio.run(main())
    assert done == [2]


def test_a_hold_that_is_awaited_twice_is_placed_once(ledger: AsyncLedger) -> None:
    """One after the other, at the same time, or awaited and then entered."""

    async def main() -> None:
        hold = ledger.hold("ann", 100)
        assert await hold is await hold
        assert (await ledger.balance("ann")).held == 100
        async with hold:
            assert (await ledger.balance("ann")).held == 100
        hold = ledger.hold("ann", 50)

        async def place() -> str:
            return (await hold).id

        assert set(await asyncio.gather(place(), place())) == {hold.id}
        assert (await ledger.balance("ann")).held == 50
        await ledger.close()

    asyncio.run(main())


@pytest.mark.parametrize("where", ["entering", "within", "leaving"])
def test_a_hold_whose_task_is_cancelled_is_released(where: str, ledger: AsyncLedger) -> None:
    """At whatever moment, and the task does not wait for it; nothing stays held."""

    async def spend(inside: asyncio.Event) -> None:
        async with ledger.hold("ann", 5):
            inside.set()
            if where == "within":
                await asyncio.sleep(60)

    async def main() -> None:
        for trial in range(40):
            inside = asyncio.Event()
            task = asyncio.create_task(spend(inside))
            if where == "entering":
                await asyncio.sleep(trial * 0.0002)
            else:
                await inside.wait()
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await ledger._threads.ended()
        assert (await ledger.balance("ann")).available == 1000
        await ledger.close()

    asyncio.run(main())


def test_a_hold_with_a_key_stays_for_who_asks_again(ledger: AsyncLedger) -> None:
    """It is open then, and can be captured, whenever its task was cancelled."""

    async def place(key: str) -> None:
        await ledger.hold("ann", 1, idempotency_key=key)

    async def main() -> None:
        for trial in range(40):
            task = asyncio.create_task(place(f"k{trial}"))
            await asyncio.sleep(trial * 0.0002)
            task.cancel()
            await asyncio.wait([task])
            async with ledger.hold("ann", 1, idempotency_key=f"k{trial}") as hold:
                await asyncio.sleep(0.002)
                await hold.capture()
        assert (await ledger.balance("ann")).available == 960
        await ledger.close()

    asyncio.run(main())


def test_a_hold_that_was_there_before_stays(ledger: AsyncLedger) -> None:
    """Who asks for it again and is cancelled does not release it."""

    async def main() -> None:
        before = await ledger.hold("ann", 5, idempotency_key="k")
        for trial in range(40):
            task = asyncio.ensure_future(ledger.hold("ann", 5, idempotency_key="k")._place())
            await asyncio.sleep(trial * 0.0002)
            task.cancel()
            await asyncio.wait([task])
        await ledger._threads.ended()
        assert (await ledger.balance("ann")).held == 5
        assert (await before.release()).status == "released"
        await ledger.close()

    asyncio.run(main())


def test_what_is_done_surely_is_waited_for_at_the_end() -> None:
    """Not by the task that was cancelled."""
    done: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(30)
        done.append(1)

    async def main() -> None:
        threads = Threads()
        task = asyncio.create_task(threads.run_surely(work))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        await asyncio.wait([task])
        assert (task.cancelled(), done) == (True, [])
        ending = asyncio.create_task(threads.ended())
        await asyncio.sleep(0.02)
        assert not ending.done()
        go_on.set()
        await ending
        assert done == [1]

    asyncio.run(main())


def test_asyncio_does_not_complain_of_what_fails_for_a_task_that_is_gone() -> None:
    """Nobody is left to be told."""
    told: list[object] = []
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(30)
        raise RuntimeError

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        threads = Threads()
        task = asyncio.create_task(threads.run_surely(work))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        await asyncio.wait([task])
        go_on.set()
        await threads.ended()
        await asyncio.sleep(0.02)
        gc.collect()

    asyncio.run(main())
    assert told == []


@pytest.mark.parametrize("moment", ["at work", "just done", "never"])
def test_what_was_done_for_a_task_that_is_gone_is_undone(moment: str) -> None:
    """By the thread that did it, or by another if it was done when the task was cancelled."""
    undone: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def work() -> int:
        begun.set()
        go_on.wait(30)
        return 7

    async def main() -> None:
        threads = Threads()
        task = asyncio.create_task(threads.run_or_undo(work, undone.append))
        await asyncio.to_thread(begun.wait, 30)
        if moment == "just done":
            go_on.set()
            while threads._begun:
                time.sleep(0.001)  # the loop does not learn of it
        if moment != "never":
            task.cancel()
        go_on.set()
        (told,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(told, asyncio.CancelledError) if moment != "never" else told == 7
        await threads.ended()

    asyncio.run(main())
    assert undone == ([] if moment == "never" else [7])


def test_a_hold_that_was_refused_can_be_awaited_again(ledger: AsyncLedger) -> None:
    """It is placed once there are credits for it."""

    async def main() -> None:
        hold = ledger.hold("ann", 1500)
        with pytest.raises(InsufficientCredits):
            await hold
        await ledger.grant("ann", 1000)
        assert (await hold).state.amount == 1500
        await ledger.close()

    asyncio.run(main())
