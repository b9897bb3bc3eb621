"""A signal handler may call the ledger: it waits for nothing that only the interrupted thread can give."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import event

from polarcredits.errors import DatabaseError
from polarcredits.ledger.database import Database
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import history
from tests.ledger.worlds import catalog

BEGIN = """
import faulthandler, itertools, os, random, signal, sys, threading
from pathlib import Path
from polarcredits.errors import DatabaseError
from polarcredits.ledger.ledger import Ledger
from polarcredits.plans import parse_catalog
faulthandler.dump_traceback_later(100, exit=True)
url, spent = sys.argv[1], []
def opened():
    return Ledger(url, parse_catalog("", pro_product_id=None))
def spend(ledger):
    ledger.deduct("ann", 1)
    spent.append(1)
def called(call):
    try:
        call()
    except DatabaseError as error:
        told.add(error.message)
def doors(ledger):
    return {
        "deduct": lambda: spend(ledger),
        "dear": lambda: ledger.deduct("ann", 10**7),
        "grant": lambda: ledger.grant("ann", 1),
        "balance": lambda: ledger.balance("ann"),
        "begin": lambda: begin(ledger),
        "close": ledger.close,
        "fork": fork,
    }
def begin(ledger):
    with ledger.begin() as connection:
        ledger.using(connection).add_user("ann")
def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
told = set()
"""
END = """
print(len(spent), *told, sep="\\n")
"""
AT_EVERY_MOMENT = """
from polarcredits.errors import InsufficientCredits
WHERE = {"async_batching", "batching", "database", "handlers", "ledger", "sqlite_file", "teller", "turns"}
WHERE |= {"impl", "queue"}  # of SQLAlchemy's pool
class Handler:
    def __init__(self, moment, call):
        self.left, self.call, self.process = moment, call, os.getpid()
    def __call__(self, frame, event, _):
        seen = event in ("call", "c_return") and Path(frame.f_code.co_filename).stem in WHERE
        if seen and self.process == os.getpid():
            self.left -= 1
            if self.left == 0:
                sys.setprofile(None)
                called(self.call)
def interrupted(kind, handler):
    ledger = opened()
    for moment in itertools.count(1):
        calls, closes = doors(ledger), handler == "close"
        ledger._teller.close()  # so that it is opened again
        ringing = Handler(moment, calls[handler])
        sys.setprofile(ringing)
        try:
            calls[kind]()
        except InsufficientCredits:
            pass
        except DatabaseError as error:
            assert closes and "closed" in error.message, error
        finally:
            sys.setprofile(None)
        if ringing.left > 0:
            return moment
        if closes:
            ledger.close()
            assert ledger.database.connections()[1] == 0
            ledger = opened()
        spend(ledger)
for handler in sys.argv[3:]:
    assert interrupted(sys.argv[2], handler) > 15
"""
AT_RANDOM_MOMENTS = """
def company(ledger):
    while True:
        try:
            spend(ledger)
        except DatabaseError:
            if ledger._group._closed:
                return
def ring(*_):
    called(random.choice([calls["deduct"], calls["grant"], calls["balance"]]))
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.002))
signal.signal(signal.SIGALRM, ring)
with opened() as ledger:
    calls = doors(ledger)
    threads = [threading.Thread(target=company, args=(ledger,)) for _ in range(int(sys.argv[2]))]
    for thread in threads:
        thread.start()
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    for _ in range(1500):
        spend(ledger)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # a handler that is yet to run would set the timer anew
for thread in threads:
    thread.join()
"""
UNTIL_TERMINATED = """
def company(ledger):
    while True:
        try:
            spend(ledger)
        except DatabaseError as error:
            told.add(error.message)
            return
for trial in range(40):
    ledger = opened()
    signal.signal(signal.SIGALRM, lambda *_: (ledger.close(), sys.exit(0)))
    threads = [threading.Thread(target=company, args=(ledger,)) for _ in range(int(sys.argv[2]))]
    for thread in threads:
        thread.start()
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.02))
        while True:
            spend(ledger)
    except (SystemExit, DatabaseError):  # SQLAlchemy, as it looks whether a server is there, raises its own
        pass
    for thread in threads:
        thread.join()
    ledger.close()
"""


def run(script: str, url: str, *options: str) -> tuple[int, set[str]]:
    """Run a program; return how many deductions were acknowledged to it, and what its handlers were told."""
    command = [sys.executable, "-c", BEGIN + script + END, url, *options]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spent, *told = done.stdout.splitlines()
    return int(spent), set(told)


def check(url: str, spent: int, *, unknown: int = 0) -> None:
    """Nothing that was acknowledged is lost; only what was *unknown* may be there beside it."""
    with Ledger(url, catalog()) as ledger:
        entries = history(ledger, "ann", type="deduct", limit=10**6)
        assert spent <= len(entries) <= spent + unknown
        assert verify(ledger).problems == []


@pytest.fixture
def rich(url: str) -> str:
    """A ledger with a user who can spend a lot."""
    with Ledger(url, catalog()) as ledger:
        ledger.grant("ann", 10**6, create=True)
    return url


@pytest.fixture
def file(tmp_path: Path) -> str:
    """The same in a SQLite file."""
    url = f"sqlite:///{tmp_path / 'credits.db'}"
    with Ledger(url, catalog()) as ledger:
        ledger.grant("ann", 10**6, create=True)
    return url


ENDED = {
    "The ledger is closed; open it again.",
    "Interrupted before the commit was known; look before you repeat.",
}
CALLS = ("deduct", "grant", "balance", "begin", "close")
LOCKED = {"The database is locked by another writer; try again."}
REFUSED = {
    "Called while the ledger is at work in this very thread, as by a signal handler that interrupted it:"
    " nothing was done. Let the handler set a flag, or raise, and call the ledger after it."
}


@pytest.mark.parametrize("kind", ["deduct", "dear", "grant", "balance", "begin"])
def test_a_handler_that_calls_the_ledger_comes_to_an_end(kind: str, rich: str) -> None:
    """Wherever it interrupts an operation: it is served, or told at once; the operation goes on."""
    own = kind == "begin" and rich.startswith("sqlite")
    spent, told = run(AT_EVERY_MOMENT, f"{rich}?timeout=0" if own else rich, kind, *CALLS)
    assert told - REFUSED == (LOCKED if own else set())
    assert told >= REFUSED
    check(rich, spent)


@pytest.mark.parametrize(("kind", "calls"), [("balance", ["fork"]), ("fork", ["deduct", "balance"])])
def test_a_handler_and_a_fork_come_to_an_end(kind: str, calls: Sequence[str], file: str) -> None:
    """Whichever interrupts the other; no connection is opened while the process forks."""
    spent, told = run(AT_EVERY_MOMENT, f"{file}?timeout=0", kind, *calls)
    assert told <= REFUSED
    check(file, spent)


@pytest.mark.parametrize("threads", ["0", "3"])
def test_a_handler_comes_to_an_end_beside_other_threads(threads: str, rich: str) -> None:
    """Also while its thread queues behind another one, waits for its turn, or leads."""
    spent, told = run(AT_RANDOM_MOMENTS, rich, threads)
    assert told <= REFUSED
    check(rich, spent)


@pytest.mark.parametrize("threads", ["0", "3"])
def test_a_handler_can_close_the_ledger_and_exit(threads: str, rich: str) -> None:
    """Nothing that was acknowledged is lost, and the other threads are answered or refused.

    In each of the 40 rounds one deduction of each thread may have been interrupted after its commit.
    """
    spent, told = run(UNTIL_TERMINATED, rich, threads)
    assert told <= ENDED
    check(rich, spent, unknown=40 * (1 + int(threads)))


@pytest.mark.parametrize("moment", ["commit", "checkin"])
def test_a_handler_at_the_end_of_a_transaction(moment: str, rich: str) -> None:
    """While the application's own transaction commits, or its connection goes back: told at once, too."""
    told: list[str] = []

    def handler(*_: object) -> None:
        with pytest.raises(DatabaseError) as refused:
            ledger.deduct("ann", 1)
        told.append(refused.value.message)

    database = Database(f"{rich}?timeout=1" if rich.startswith("sqlite") else rich, busy_seconds=1)
    with Ledger(rich, catalog(), database=database) as ledger:
        place = database.writer if moment == "commit" else database.engine.pool
        with ledger.begin() as connection:
            ledger.using(connection).deduct("ann", 1)
            event.listen(place, moment, handler, once=True)
        assert set(told) == REFUSED
        assert ledger.deduct("ann", 1).balance == 10**6 + 998
        assert verify(ledger).problems == []
