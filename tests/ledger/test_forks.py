"""A ledger that is open while the process forks is good for parent and child (docs/concurrency.md)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from tests.ledger.worlds import catalog

BEGIN = """
import itertools, os, sys, threading, time
from pathlib import Path
from polarcredits.ledger import schema
from polarcredits.errors import DatabaseError
from polarcredits.ledger.ledger import Ledger
from polarcredits.plans import parse_catalog
ledger = Ledger(sys.argv[1], parse_catalog("", pro_product_id=None))
def spend(times=20):
    for _ in range(times):
        ledger.deduct("ann", 1)
def child_of(work):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
ready, gone = os.pipe(), os.pipe()
"""
BOTH_GO_ON = """
spend(1)
ended = child_of(spend)
spend()
assert ended() == 0
assert ledger.deduct("ann", 1).balance == 958
"""
PARENT_CLOSES = """
spend(1)
def work():
    spend(1)
    os.write(ready[1], b".")
    os.read(gone[0], 1)
    spend(10)
ended = child_of(work)
os.read(ready[0], 1)
ledger.close()
os.write(gone[1], b".")
assert ended() == 0
"""
PARENT_IS_GONE = """
spend(1)
def work():
    spend(1)
    os.write(ready[1], b".")
    while os.getppid() == parent:
        time.sleep(0.01)
    Ledger(sys.argv[1], ledger.catalog).close()
    spend(10)
    print("done", flush=True)
parent = os.getpid()
ended = child_of(work)
os.read(ready[0], 1)
os._exit(0)
"""
OTHERS_AT_WORK = """
stop = threading.Event()
def until_stopped(work):
    while not stop.is_set():
        work()
numbers = itertools.count()
def back_up():
    if ledger.database.sqlite:
        schema.backup(ledger.database, Path(f"{ledger.database.engine.url.database}.{next(numbers)}"))
others = [lambda: spend(1), lambda: ledger.grant("ann", 1), lambda: ledger.balance("ann"), back_up]
threads = [threading.Thread(target=until_stopped, args=(work,)) for work in others * 2]
for thread in threads:
    thread.start()
codes = []
for _ in range(15):
    time.sleep(0.01)
    codes.append(child_of(lambda: (spend(2), ledger.balance("ann")))())
forks = [threading.Thread(target=lambda: codes.append(child_of(lambda: spend(1))())) for _ in range(4)]
for thread in forks:
    thread.start()
for thread in forks:
    thread.join()
stop.set()
for thread in threads:
    thread.join()
spend(1)
assert codes == [0] * 19, codes
"""
ASYNC = """
import asyncio
from polarcredits.ledger.async_ledger import AsyncLedger
twin = AsyncLedger(ledger)
held, begun = threading.Event(), threading.Event()
def at_work():
    begun.set()
    held.wait()
async def main():
    waits = asyncio.create_task(twin._run(at_work))
    await asyncio.to_thread(begun.wait)
    code = await asyncio.to_thread(lambda: child_of(lambda: asyncio.run(twin.close()))())
    held.set()
    await waits
    await twin.close()
    assert code == 0
asyncio.run(main())
"""
IN_A_TRANSACTION = """
ledger.database.patience = 0.2
def work():
    for tried in (ledger, None):
        try:
            (tried or Ledger(sys.argv[1], ledger.catalog)).deduct("ann", 1)
        except DatabaseError as error:
            assert "forked while it was at work" in str(error), error
        else:
            raise AssertionError("spent")
with ledger.begin() as connection:
    ledger.using(connection).deduct("ann", 5)
    assert child_of(work)() == 0
spend(1)
"""


def run(script: str, url: str) -> str:
    """Run a program with an open ledger, and return what it and its children printed."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script, url], timeout=60, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == 0
    return done.stdout


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A SQLite ledger with a user."""
    url = f"sqlite:///{tmp_path / 'credits.db'}"
    with Ledger(url, catalog()) as ledger:
        ledger.add_user("ann")
    return url


def left(url: str) -> int:
    """Return ann's balance, in a ledger that breaks no law."""
    with Ledger(url, catalog()) as ledger:
        assert verify(ledger).problems == []
        return ledger.balance("ann").balance


def test_parent_and_child_go_on(url: str) -> None:
    """Each on connections of its own."""
    with Ledger(url, catalog()) as ledger:
        ledger.add_user("ann")
    run(BOTH_GO_ON, url)
    assert left(url) == 958


@pytest.mark.parametrize(("script", "expected"), [(PARENT_CLOSES, 988), (PARENT_IS_GONE, 988)])
def test_what_a_child_acknowledges_is_there(script: str, expected: int, file: str) -> None:
    """Also when it is the only one left: nobody takes the file for unused and its log away."""
    run(script, file)
    assert left(file) == expected


def test_a_fork_while_threads_are_at_work(url: str) -> None:
    """It waits until none of them has a connection, and they go on after it."""
    with Ledger(url, catalog()) as ledger:
        ledger.add_user("ann")
        ledger.grant("ann", 10**6)
    run(OTHERS_AT_WORK, url)
    assert left(url) > 0


def test_an_async_ledger_closes_in_a_child(file: str) -> None:
    """What the parent has threads at work for is nothing that a child waits for."""
    run(ASYNC, file)
    assert left(file) == 1000


def test_a_fork_within_a_transaction(file: str) -> None:
    """The child is told that it cannot use the file; the parent's transaction is as it was."""
    run(IN_A_TRANSACTION, file)
    assert left(file) == 994
