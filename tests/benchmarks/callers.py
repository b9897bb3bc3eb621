"""Many callers at once: threads and asyncio tasks, each waiting for its own answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from polarcredits.ledger.async_ledger import AsyncLedger
from tests.benchmarks.harness import rate


def by_threads(callers: int, each: int, call: Callable[[int], object]) -> float:
    """Return the rate of `callers` threads that make `each` calls; a call gets a running number."""

    def caller(number: int) -> None:
        begin.wait()
        for turn in range(each):
            call(number + turn * callers)

    begin = threading.Barrier(callers + 1)
    threads = [threading.Thread(target=caller, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()

    def all_of_them() -> None:
        begin.wait()
        for thread in threads:
            thread.join()

    return rate(callers * each, all_of_them)


def by_tasks(callers: int, each: int, ledger: AsyncLedger, spenders: list[str]) -> float:
    """Return the rate of `callers` tasks that make `each` deductions."""

    async def caller(number: int) -> None:
        for turn in range(each):
            await ledger.deduct(spenders[(number + turn * callers) % len(spenders)], 1)

    async def all_of_them() -> None:
        await asyncio.gather(*(caller(number) for number in range(callers)))

    return rate(callers * each, lambda: asyncio.run(all_of_them()))
