"""A signal that raises in the midst of a deduction leaves the ledger as usable as it was."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import pytest

from polarcredits.errors import DatabaseBusy, DatabaseError
from polarcredits.ledger.async_batching import AsyncGroup
from polarcredits.ledger.batching import Group
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.teller import SqliteTeller
from polarcredits.ledger.turns import Turn
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import history
from tests.ledger.test_batching import until
from tests.ledger.worlds import catalog

WHERE = (
    *("answering", "async_batching", "batching", "database", "failing", "handlers", "hotpath", "ledger"),
    *("sqlite_file", "teller", "turns"),
)
"""The modules that hold something while others wait."""

EVENTS = ("call", "c_return")


class Alarm(BaseException):
    """What a signal raises, as Ctrl-C raises KeyboardInterrupt."""


class Interruption:
    """Raises within our own code where a signal may: as a function begins, and after a call of C."""

    def __init__(self, moment: int, events: Sequence[str] = EVENTS) -> None:
        self.left = moment
        self.events = events

    def __enter__(self) -> Interruption:
        sys.setprofile(self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _seen(self, frame: FrameType, event: str, _what: object) -> None:
        if event in self.events and Path(frame.f_code.co_filename).stem in WHERE:
            self.left -= 1
            if self.left == 0:
                raise Alarm


def interrupted_everywhere(work: Callable[[], object], events: Sequence[str] = EVENTS) -> Iterator[int]:
    """Interrupt *work* at its first moment, at its second, and so on to its end; yield after each."""
    for moment in itertools.count(1):
        interruption = Interruption(moment, events)
        with contextlib.suppress(Alarm), interruption:
            work()
        if interruption.left > 0:
            return
        yield moment


class Waiting:
    """Who waits half a second for a turn."""

    patience = 0.5


def takes(turn: Turn) -> bool:
    """Say whether another thread gets the turn."""
    got = []

    def take() -> None:
        with contextlib.suppress(DatabaseBusy), turn:
            got.append(True)

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return bool(got)


def test_a_turn_is_one_threads_alone() -> None:
    """Another one is told that it is busy, and gets it afterwards."""
    turn = Turn(Waiting())
    with turn:
        assert not takes(turn)
    assert takes(turn)


def test_an_interrupted_turn_is_free() -> None:
    """Wherever the signal comes: while it is taken, held or given back."""
    turn = Turn(Waiting())

    def work() -> None:
        with turn:
            pass

    for moment in interrupted_everywhere(work):
        assert takes(turn), moment
    assert moment == 2


@pytest.mark.parametrize("again", [True, False], ids=["open", "opened anew"])
@pytest.mark.parametrize("kind", ["deduct", "grant", "balance"])
def test_an_interrupted_operation_stops_nobody(kind: str, again: bool, tmp_path: Path) -> None:
    """Not the next one, nor another thread's; and all or nothing of it is there."""
    with Ledger(f"sqlite:///{tmp_path / 'credits.db'}", catalog()) as ledger:
        ledger.add_user("ann")
        ledger.grant("ann", 1000)
        doors: dict[str, Callable[[], object]] = {
            "deduct": lambda: ledger.deduct("ann", 1),
            "grant": lambda: ledger.grant("ann", 1),
            "balance": lambda: ledger.balance("ann"),
        }
        ledger.deduct("ann", 1)
        for moment in interrupted_everywhere(doors[kind]):
            assert isinstance(ledger.database.turn, Turn)
            assert ledger._group is not None
            assert not ledger._group._led
            assert takes(ledger.database.turn), moment
            before = len(history(ledger, "ann", limit=1000))
            ledger.deduct("ann", 1)
            assert len(history(ledger, "ann", limit=1000)) == before + 1
            if not again:
                ledger._teller.close()
        assert moment > 10
        assert verify(ledger).problems == []


def test_an_interrupted_leader_tells_everybody_of_a_failure() -> None:
    """The others of its batch get the failure or that it was interrupted, whatever it had told them."""
    last = threading.Event()

    def work(requests: Sequence[int]) -> list[int]:
        if 1 not in requests:
            raise DatabaseError("The disk is full.")
        until(lambda: len(group._queue) == 3 or last.is_set())
        return list(requests)

    def follow(request: int) -> int:
        until(lambda: len(group._queue) > 0 or last.is_set())
        return group.ask(request)

    def lead() -> None:
        begun.append(pool.submit(group.ask, 1))
        until(lambda: group._led)
        begun.extend(pool.submit(follow, request) for request in (3, 4))
        with pytest.raises(DatabaseError):
            group.ask(2)

    group: Group[int, int] = Group(work)
    begun: list[Future[int]] = []
    with ThreadPoolExecutor(3) as pool:
        for _ in interrupted_everywhere(lead):
            last.set()
            told = [str(each.exception(10)) for each in begun]
            assert told[0] == "None"
            assert all("disk is full" in each or "Interrupted" in each for each in told[1:]), told
            assert not group._led
            begun.clear()
            last.clear()
            group = Group(work)  # which has answered nobody: its first batch does not wait for others


@pytest.mark.parametrize("fails", [False, True])
def test_an_interrupted_loop_answers_every_task(fails: bool) -> None:
    """While a batch begins or is answered: within our own functions, for the loop's calls are its own."""

    def work(requests: Sequence[int]) -> list[int]:
        if fails and 9 not in requests:
            raise DatabaseError("The disk is full.")
        return list(requests)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        group: AsyncGroup[int, int] = AsyncGroup(work, stuck=30)
        async with asyncio.timeout(10):
            await asyncio.wait([asyncio.create_task(group.ask(request)) for request in range(3)])
            with contextlib.suppress(DatabaseError):
                assert await group.ask(9) == 9
            await group.close()

    for moment in interrupted_everywhere(lambda: asyncio.run(main()), EVENTS[1:]):
        assert moment < 1000
    assert moment > 40


def test_an_interrupted_close_of_the_connection(tmp_path: Path) -> None:
    """The next deduction opens another one."""

    class Given:
        """A connection that was interrupted while it is closed."""

        def rollback(self) -> None:
            """Be interrupted."""
            raise Alarm

        def close(self) -> None:
            """Be interrupted again."""
            raise Alarm

    class Failing:
        """A cursor that cannot go on."""

        def execute(self, *_: object) -> None:
            """Fail."""
            raise sqlite3.OperationalError("disk I/O error")

    with Ledger(f"sqlite:///{tmp_path / 'credits.db'}", catalog()) as ledger:
        ledger.add_user("ann")
        ledger.deduct("ann", 1)
        teller = ledger._teller
        assert isinstance(teller, SqliteTeller)
        teller._driver, teller._cursor, teller._begin = Given(), Failing(), Failing().execute
        with pytest.raises(Alarm):
            ledger.deduct("ann", 1)
        assert ledger.deduct("ann", 1).balance == 998
