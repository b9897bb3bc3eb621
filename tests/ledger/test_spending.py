"""Spending: all or nothing, once a key, and never below zero (docs/rules.md §5)."""

from __future__ import annotations

import multiprocessing
import pickle
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta, timezone
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import psycopg
import pytest
from psycopg.pq import Trace
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError

from polarcredits.errors import (
    AlreadyReversed,
    DatabaseBusy,
    DatabaseError,
    HoldClosed,
    InsufficientCredits,
    InvalidInput,
    KeyReused,
    NotFound,
    PolarCreditsError,
    UnknownUser,
)
from polarcredits.ledger.identity import account_of
from polarcredits.ledger.keeping import load
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.reconcile import true_at, write
from polarcredits.ledger.values import Receipt
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import history
from polarcredits.lots import Lot
from polarcredits.refill import refill
from tests.ledger.conftest import copy_of_template
from tests.ledger.fronts import Awaited, Crowded
from tests.ledger.worlds import at, catalog, dump, lots

BEHIND = [("sqlite", front) for front in (Ledger, Crowded, Awaited)]
BEHIND += [("postgresql", Ledger)]


@pytest.fixture(params=BEHIND, ids=lambda behind: f"{behind[0]}-{behind[1].__name__}")
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger behind each front: deductions go alone, in company, awaited."""
    database, front = request.param
    if database == "sqlite":
        url = f"sqlite:///{tmp_path / 'credits.db'}"
    else:
        url = copy_of_template(request.getfixturevalue("postgres"))
    opened: Ledger = front(url, catalog(), actor="test")
    with opened:
        yield opened


@contextmanager
def statements(connection: Connection) -> Iterator[list[str]]:
    """Collect the first words of what the database runs on a connection, but for BEGIN and savepoints.

    SQLite tells of a statement again for each trigger in it.
    """
    seen: list[str] = []

    def listen(statement: str) -> None:
        word = statement.split()[0]
        if word not in ("BEGIN", "SAVEPOINT", "RELEASE", "--", *seen[-1:]):
            seen.append(word)

    driver = connection.connection.driver_connection
    if isinstance(driver, sqlite3.Connection):
        driver.set_trace_callback(listen)
        yield seen
        driver.set_trace_callback(None)
    elif isinstance(driver, psycopg.Connection):
        with TemporaryFile("w+") as wire:
            driver.pgconn.trace(wire.fileno())
            driver.pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)
            yield seen
            driver.pgconn.untrace()
            wire.seek(0)
            for statement in re.findall(r'^F\t\d+\t(?:Query\t|Parse\t "")\s*"([^"]+)"', wire.read(), re.M):
                listen(statement)


@pytest.mark.parametrize("grants", [0, 1000])
def test_the_hot_path_is_one_update_and_one_insert(ledger: Ledger, grants: int) -> None:
    """§5.5: whatever the number of the user's grants; on PostgreSQL in one round trip."""
    ledger.add_user("ann")
    call = ledger.call()
    with ledger.begin() as connection:
        account = load(connection, account_of(connection, "ann"), lock=True)
        account.book.lots += [
            Lot(key=f"manual:{n}", source="manual", plan=None, gross=1, effective_at=call.now)
            for n in range(grants)
        ]
        write(connection, true_at(connection, ledger.catalog, account, call), call)
    assert ledger.balance("ann").balance == 1000 + grants
    wanted = ["UPDATE", "INSERT"] if ledger.database.sqlite else ["WITH"]
    for key in (None, "k1"):
        with ledger.begin() as connection, statements(connection) as seen:
            ledger.using(connection).deduct("ann", 2, idempotency_key=key)
        assert seen == wanted


EARLIER = datetime(2020, 1, 1, tzinfo=UTC)
WIDE_KEY = "".join(chr(0x4E00 + number * 7 % 20_000) for number in range(867))
"""More bytes than an index of PostgreSQL takes."""
WRONG: Any = 5
PAIRS: Any = [("a", "b")]
DAY: Any = date(2030, 1, 1)
HUGE = 10**5000
"""More digits than Python writes out."""
FAR = datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))


def open_hold(ledger: Ledger) -> str:
    """Return the id of ann's hold."""
    return ledger.hold("ann", 50, idempotency_key="held").id


def last_deduct(ledger: Ledger) -> str:
    """Return the id of ann's latest deduction."""
    return history(ledger, "ann", type="deduct")[0].id


REFUSALS: list[tuple[type[PolarCreditsError], Callable[[Ledger], object]]] = [
    (UnknownUser, lambda ledger: ledger.deduct("bob", 1)),
    (InsufficientCredits, lambda ledger: ledger.deduct("ann", 900)),
    (InsufficientCredits, lambda ledger: ledger.hold("ann", 900)),
    (KeyReused, lambda ledger: ledger.deduct("ann", 6, idempotency_key="spent")),
    (KeyReused, lambda ledger: ledger.deduct("ann", 5, operation="x", idempotency_key="spent")),
    (KeyReused, lambda ledger: ledger.grant("ann", 5, idempotency_key="spent")),
    (KeyReused, lambda ledger: ledger.hold("ann", 5, idempotency_key="spent")),
    (KeyReused, lambda ledger: ledger.deduct("ann", 50, idempotency_key="held")),
    (AlreadyReversed, lambda ledger: ledger.deduct("ann", 7, idempotency_key="back")),
    (InvalidInput, lambda ledger: ledger.deduct("ann", 0)),
    (InvalidInput, lambda ledger: ledger.deduct("ann", True)),
    (InvalidInput, lambda ledger: ledger.grant("ann", 2**53 + 1)),
    (InvalidInput, lambda ledger: ledger.grant("ann", 5, expires_at=datetime(2020, 1, 1, tzinfo=UTC))),
    (InvalidInput, lambda ledger: ledger.deduct("ann", 1, at=EARLIER)),
    (InvalidInput, lambda ledger: ledger.hold("ann", 1, ttl=timedelta(hours=25))),
    (InvalidInput, lambda ledger: ledger.hold("ann", 1, operation="a\x01")),
    (InvalidInput, lambda ledger: ledger.reverse("txn_1_1")),
    (InvalidInput, lambda ledger: ledger.grant("ann", 5, expires_in=timedelta.max)),
    (InvalidInput, lambda ledger: ledger.grant("ann", 5, expires_at=FAR)),
    (InvalidInput, lambda ledger: ledger.grant("ann", 5, expires_at=FAR, expires_in=timedelta(1))),
    (InvalidInput, lambda ledger: ledger.grant("ann", 5, at=EARLIER)),
    (InvalidInput, lambda ledger: ledger.hold("ann", 5, at=EARLIER)),
    (InvalidInput, lambda ledger: ledger.holds.capture(open_hold(ledger), at=EARLIER)),
    (InvalidInput, lambda ledger: ledger.holds.release(open_hold(ledger), at=EARLIER)),
    (InvalidInput, lambda ledger: ledger.reverse(last_deduct(ledger), at=EARLIER)),
    (InvalidInput, lambda ledger: history(ledger, "ann", type="gift")),
    (InvalidInput, lambda ledger: ledger.deduct("ann", 1, idempotency_key=WIDE_KEY)),
    (InvalidInput, lambda ledger: ledger.grant("ann", 1, idempotency_key=WIDE_KEY)),
    (InvalidInput, lambda ledger: ledger.hold("ann", 1, idempotency_key=WIDE_KEY)),
    (InvalidInput, lambda ledger: ledger.deduct("ann", 1, idempotency_key=WRONG)),
    (InvalidInput, lambda ledger: ledger.deduct("ann", 1, operation=WRONG)),
    (InvalidInput, lambda ledger: ledger.deduct(WRONG, 1)),
    (InvalidInput, lambda ledger: ledger.grant(WRONG, 1)),
    (InvalidInput, lambda ledger: ledger.balance(WRONG)),
    (InvalidInput, lambda ledger: ledger.add_user(WRONG)),
    (InvalidInput, lambda ledger: ledger.deduct("ann", HUGE)),
    (InvalidInput, lambda ledger: ledger.deduct("ann", quantity=HUGE)),
    (InvalidInput, lambda ledger: ledger.deduct("ann", 1, metadata=WRONG)),
    (InvalidInput, lambda ledger: ledger.deduct("ann", 1, metadata=PAIRS)),
    (InvalidInput, lambda ledger: ledger.deduct("ann", 1, at=WRONG)),
    (InvalidInput, lambda ledger: ledger.grant("ann", 1, expires_at=DAY)),
    (InvalidInput, lambda ledger: ledger.grant("ann", 1, expires_in=WRONG)),
    (InvalidInput, lambda ledger: ledger.hold("ann", 1, ttl=WRONG)),
    (NotFound, lambda ledger: ledger.reverse(WRONG)),
    (NotFound, lambda ledger: ledger.holds.release(WRONG)),
    (NotFound, lambda ledger: ledger.holds.capture("hold\0")),
    (UnknownUser, lambda ledger: ledger.deduct("ann\0", 1)),
    (UnknownUser, lambda ledger: ledger.grant("ann\0", 1)),
    (UnknownUser, lambda ledger: ledger.hold("ann\0", 1)),
    (UnknownUser, lambda ledger: ledger.balance("ann\0")),
]


@pytest.mark.parametrize(("error", "act"), REFUSALS)
def test_a_refusal_moves_nothing(
    ledger: Ledger, error: type[PolarCreditsError], act: Callable[[Ledger], object]
) -> None:
    """Every refusal names its kind and leaves the whole database as it was."""
    ledger.add_user("ann")
    ledger.deduct("ann", 5, idempotency_key="spent")
    ledger.hold("ann", 50, idempotency_key="held")
    ledger.reverse(ledger.deduct("ann", 7, idempotency_key="back").transaction.id)
    ledger.deduct("ann", 100)
    before = dump(ledger)
    with pytest.raises(error):
        act(ledger)
    assert dump(ledger) == before
    assert verify(ledger).problems == []


def test_the_same_request_again_returns_the_first_result(ledger: Ledger) -> None:
    """§5.4: its transaction, its balance, and what is available now; funds are not judged."""
    ledger.add_user("ann")
    first = ledger.deduct("ann", 900, metadata={"a": "1"}, idempotency_key="k")
    ledger.deduct("ann", 50)
    before = dump(ledger)
    again = ledger.deduct("ann", 900, metadata={"a": "1"}, idempotency_key="k")
    assert (again.transaction, again.balance, again.available, again.replayed) == (
        first.transaction,
        100,
        50,
        True,
    )
    assert dump(ledger) == before


class Named(StrEnum):
    """Texts of an application that call themselves something else."""

    KEY = "order-1"
    RENDER = "render"

    def __str__(self) -> str:
        return f"Named.{self.name}"


def test_texts_are_kept_as_they_are_and_not_as_they_call_themselves(ledger: Ledger) -> None:
    """One key spends once, however the text that holds it is made."""
    ledger.add_user("ann")
    told = [
        ledger.deduct("ann", 10, operation=Named.RENDER, idempotency_key=key)
        for key in (Named.KEY, Named.KEY, "order-1")
    ]
    assert [(each.balance, each.replayed) for each in told] == [(990, False), (990, True), (990, True)]
    (kept,) = history(ledger, "ann", type="deduct")
    assert (kept.operation, kept.idempotency_key) == ("render", "order-1")


def test_an_actor_that_cannot_be_kept(ledger: Ledger) -> None:
    """It would be cut short, or fail every entry."""
    for actor in ("n\0ul", "", " "):
        with pytest.raises(InvalidInput, match="actor"):
            Ledger("sqlite://", catalog(), actor=actor, database=ledger.database)


def test_a_time_in_another_zone_is_the_same_request(ledger: Ledger) -> None:
    """An instant has many names; the key is not used for something else."""
    ledger.add_user("ann")
    until = datetime(2040, 1, 1, tzinfo=UTC)
    first = ledger.grant("ann", 5, expires_at=until, idempotency_key="k")
    again = until.astimezone(timezone(timedelta(hours=2)))
    assert ledger.grant("ann", 5, expires_at=again, idempotency_key="k").transaction == first.transaction
    assert ledger.balance("ann").balance == 1005
    with pytest.raises(KeyReused):
        ledger.grant("ann", 5, expires_at=until + timedelta(seconds=1), idempotency_key="k")


def test_a_receipt_is_a_value_that_tells_what_the_history_tells(ledger: Ledger) -> None:
    """Whoever reads it, whenever: the entry as it was written, and two of the same are one."""
    ledger.add_user("ann")
    options: dict[str, Any] = {"operation": "render", "metadata": {"a": "1"}, "idempotency_key": "k"}
    first = ledger.deduct("ann", 3, at=at("02-01"), **options)
    second = ledger.deduct("ann", 4)
    assert [second.transaction, first.transaction] == history(ledger, "ann")[:2]
    same = pickle.loads(pickle.dumps(first))
    assert same == first != second
    assert len({first, same, second}) == 2
    assert (
        repr(first)
        == repr(same)
        == f"Receipt(transaction={first.transaction!r}, balance=997, " + ("available=997, replayed=False)")
    )
    assert Receipt(first.transaction, 997, 997, replayed=True) != first


def test_a_refused_request_does_not_use_its_key_up(ledger: Ledger) -> None:
    """§5.4."""
    ledger.add_user("ann")
    with pytest.raises(InsufficientCredits):
        ledger.deduct("ann", 2000, idempotency_key="k")
    ledger.grant("ann", 1500)
    assert ledger.deduct("ann", 2000, idempotency_key="k").balance == 500


def test_spending_order_and_reversal(ledger: Ledger) -> None:
    """§§5.1, 5.6: soonest to expire first; a reversal goes back to where it came from."""
    ledger.grant("ann", 100, expires_at=at("05-01"), create=True, at=at("04-01"))
    ledger.grant("ann", 100, expires_at=at("04-20"), at=at("04-01"))
    one = ledger.deduct("ann", 150, at=at("04-02"))
    two = ledger.deduct("ann", 80, at=at("04-02"))
    assert lots(ledger, "ann", at("04-02")) == [("lifetime", 1000, 30, 970)]
    ledger.reverse(two.transaction.id, at=at("04-03"))
    assert lots(ledger, "ann", at("04-03")) == [
        ("manual", 100, 50, 50),
        ("lifetime", 1000, 0, 1000),
    ]
    # The first 100 of `one` came from a grant that has expired since: they expire again.
    ledger.reverse(one.transaction.id, at=at("04-21"))
    assert lots(ledger, "ann", at("04-21")) == [
        ("manual", 100, 0, 100),
        ("lifetime", 1000, 0, 1000),
    ]
    with pytest.raises(AlreadyReversed):
        ledger.reverse(one.transaction.id)


def test_what_is_due_is_true_without_any_job(ledger: Ledger) -> None:
    """§5.8: expired credits are neither shown nor spent."""
    ledger.grant("ann", 100, expires_at=at("05-01"), create=True, at=at("04-01"))
    assert ledger.balance("ann", at=at("04-30 23:59")).available == 1100
    assert ledger.balance("ann", at=at("05-01")).available == 1000
    with pytest.raises(InsufficientCredits) as refused:
        ledger.deduct("ann", 1001, at=at("05-01"))
    assert (refused.value.required, refused.value.available) == (1001, 1000)


def test_a_hold_across_expiry(ledger: Ledger) -> None:
    """§5.7: held credits do not expire while the hold is open; the rest goes at once after it."""
    ledger.grant("ann", 100, expires_at=at("05-01"), create=True, at=at("04-30"))
    hold = ledger.hold("ann", 60, ttl=timedelta(hours=20), at=at("04-30 12:00"))
    told = ledger.balance("ann", at=at("05-01 01:00"))
    assert (told.balance, told.held, told.available) == (1060, 60, 1000)
    ledger.holds.capture(hold.id, 25, at=at("05-01 01:00"))
    told = ledger.balance("ann", at=at("05-01 01:00"))
    assert (told.balance, told.held, told.available) == (1000, 0, 1000)
    assert verify(ledger).problems == []


def test_a_lapse_is_true_at_its_instant(ledger: Ledger) -> None:
    """§5.7: nothing has to run for it."""
    ledger.grant("ann", 100, create=True, at=at("04-01"))
    hold = ledger.hold("ann", 1100, ttl=timedelta(minutes=5), at=at("04-01 01:00"))
    with pytest.raises(InsufficientCredits):
        ledger.deduct("ann", 1, at=at("04-01 01:04"))
    with pytest.raises(HoldClosed):
        ledger.holds.capture(hold.id, at=at("04-01 01:05"))
    assert ledger.deduct("ann", 1100, at=at("04-01 01:05")).balance == 0
    assert verify(ledger).problems == []


def test_leaving_a_hold_releases_it(ledger: Ledger) -> None:
    """The context manager frees what was not captured."""
    ledger.add_user("ann")
    with ledger.hold("ann", 50):
        assert ledger.balance("ann").available == 950
    assert ledger.balance("ann").available == 1000
    with ledger.hold("ann", 50) as hold:
        assert hold.capture(31).balance == 969
    assert ledger.balance("ann").held == 0


def test_joining_the_applications_transaction(ledger: Ledger) -> None:
    """Work and charge commit together, or not at all; a refusal leaves the connection usable."""
    ledger.add_user("ann")
    before = dump(ledger)

    def work_that_fails() -> None:
        with ledger.begin() as connection:
            ledger.using(connection).deduct("ann", 10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work_that_fails()
    assert dump(ledger) == before
    with ledger.begin() as connection:
        joined = ledger.using(connection)
        with pytest.raises(InsufficientCredits):
            joined.deduct("ann", 5000)
        joined.grant("ann", 5, idempotency_key="k")
        with pytest.raises(KeyReused):
            joined.deduct("ann", 5, idempotency_key="k")
        joined.deduct("ann", 10)
    assert ledger.balance("ann").balance == 995


@pytest.mark.parametrize("key", [None, "k"])
def test_joining_a_transaction_that_cannot_write(key: str | None, tmp_path: Path) -> None:
    """Begun without IMMEDIATE beside another writer: our error, for what the hot path runs too."""
    url = f"sqlite:///{tmp_path / 'credits.db'}"
    with Ledger(url, catalog()) as ledger:
        ledger.add_user("ann")
        engine = create_engine(url, connect_args={"timeout": 0})
        with ledger.begin(), engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            with pytest.raises(DatabaseBusy, match="locked"):
                ledger.using(connection).deduct("ann", 1, idempotency_key=key)
        engine.dispose()
        assert ledger.balance("ann").balance == 1000


@pytest.mark.parametrize("options", [{}, {"isolation_level": "AUTOCOMMIT"}])
def test_joining_where_no_transaction_has_begun(options: dict[str, str], tmp_path: Path) -> None:
    """SQLAlchemy begins none on SQLite by itself: what we did would be committed, whatever becomes of it."""
    url = f"sqlite:///{tmp_path / 'credits.db'}"
    with Ledger(url, catalog()) as ledger:
        ledger.add_user("ann")
        engine = create_engine(url, **options)
        with engine.connect() as connection:
            joined = ledger.using(connection)
            for spend in (joined.deduct, joined.grant, joined.hold):
                with pytest.raises(DatabaseBusy, match="IMMEDIATE"):
                    spend("ann", 1)
            assert joined.balance("ann").balance == 1000
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            assert joined.deduct("ann", 1).balance == 999
            connection.connection.rollback()
        engine.dispose()
        assert ledger.balance("ann").available == 1000


@pytest.mark.parametrize("part", ["\ud800", "a\x00"])
def test_metadata_that_nobody_could_read_again(part: str, ledger: Ledger) -> None:
    """Refused, as a name or a value, and nothing moves."""
    ledger.add_user("ann")
    before = dump(ledger)
    for metadata in ({part: "x"}, {"x": part}):
        with pytest.raises(InvalidInput, match="surrogates"):
            ledger.deduct("ann", 1, metadata=metadata)
    no_time: Any = None
    with pytest.raises(InvalidInput, match="24 hours"):
        ledger.hold("ann", 1, ttl=no_time)
    assert dump(ledger) == before


def test_the_longest_key_is_kept_and_found(ledger: Ledger) -> None:
    """In bytes, of whatever alphabet."""
    ledger.add_user("ann")
    for key in (WIDE_KEY[:-1], "k" * 1000):
        first = ledger.deduct("ann", 1, idempotency_key=key)
        assert ledger.deduct("ann", 1, idempotency_key=key).transaction == first.transaction
    assert ledger.balance("ann").balance == 998


def test_a_dry_run_in_the_applications_transaction_leaves_it_as_it_was(ledger: Ledger) -> None:
    """A joined refill that only reports keeps what the application did, and nothing of its own."""
    ledger.grant("ann", 100, expires_at=at("05-01"), create=True, at=at("04-01"))
    with ledger.begin() as connection:
        joined = ledger.using(connection)
        joined.deduct("ann", 10, at=at("04-02"))
        report = refill(joined, at=at("05-02"), dry_run=True)
        assert (report.expired, report.credits_expired) == (1, 90)
    assert [entry.type for entry in history(ledger, "ann")] == ["deduct", "grant", "grant"]


def test_the_database_refuses_to_change_an_entry(ledger: Ledger) -> None:
    """§6.1: triggers refuse UPDATE and DELETE, and TRUNCATE where there is one."""
    ledger.add_user("ann")
    verbs = ["UPDATE credit_transactions SET amount = 1", "DELETE FROM credit_transactions"]
    verbs += [] if ledger.database.sqlite else ["TRUNCATE credit_transactions CASCADE"]
    before = dump(ledger)
    for verb in verbs:
        with (
            pytest.raises((DBAPIError, DatabaseError), match="append-only"),
            ledger.database.writer.begin() as connection,
        ):
            connection.execute(text(verb))
    assert dump(ledger) == before


def _spend(url: str, barrier: threading.Barrier, key: str | None, results: list[int]) -> None:
    with Ledger(url, catalog()) as ledger:
        barrier.wait()
        done = 0
        for _ in range(1 if key else 40):
            try:
                receipt = ledger.deduct("ann", 60, idempotency_key=key)
                done += not receipt.replayed
            except InsufficientCredits:
                pass
        results.append(done)


@pytest.mark.parametrize(("key", "spent"), [(None, 16), ("same", 1)])
def test_processes_never_overspend(url: str, key: str | None, spent: int) -> None:
    """§5.3: eight processes at the same moment; 1,000 credits are 16 times 60; one key posts once."""
    with Ledger(url, catalog()) as ledger:
        ledger.add_user("ann")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        with context.Manager() as manager:
            results = manager.list()
            barrier = manager.Barrier(8)
            workers = [context.Process(target=_spend, args=(url, barrier, key, results)) for _ in range(8)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            assert [worker.exitcode for worker in workers] == [0] * 8
            assert sum(results) == spent
        assert ledger.balance("ann").balance == 1000 - 60 * spent
        assert verify(ledger).problems == []
