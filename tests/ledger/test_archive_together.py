"""Archiving beside everything else: it stops nobody, loses nothing, and can be stopped at any point."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from polarcredits.errors import NotFound
from polarcredits.ledger.database import Database
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import history
from polarcredits.refill import refill
from polarcredits.webhooks.fixtures import Story
from tests.benchmarks.bulk import fill
from tests.ledger.archives import archive, archiver, call, count
from tests.ledger.conftest import copy_of_template
from tests.ledger.worlds import at, catalog, dump, feed

PATIENCE = 60


@pytest.fixture
def url(postgres: str) -> str:
    """A PostgreSQL in which Ann and Ben have old entries."""
    made = copy_of_template(postgres)
    with Ledger(made, catalog()) as ledger:
        for name in ("ann", "ben"):
            feed(ledger, Story(name, at=at("04-01")).purchase("pro"))
            ledger.deduct(name, 5, at=at("04-02"))
            ledger.grant(name, 10, at=at("04-03"))
            ledger.deduct(name, 6, at=at("04-04"))
    return made


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """A ledger on it."""
    with Ledger(url, catalog()) as opened:
        yield opened


def waiting(url: str, many: int) -> None:
    """Wait until so many sessions of the database wait for a lock."""
    asked = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    until = time.monotonic() + PATIENCE
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            row = connection.execute(asked).fetchone()
            if row == (many,):
                return
            assert time.monotonic() < until, row
            time.sleep(0.01)


@contextmanager
def stopped(url: str, obstacle: str) -> Iterator[tuple[psycopg.Connection[Any], Future[Any]]]:
    """Give an archiving of what is older than 4 April that waits for what *obstacle* locks."""
    with (
        psycopg.connect(url) as holder,
        archiver(url) as session,
        ThreadPoolExecutor(1) as pool,
    ):
        holder.execute(obstacle.encode())
        running = pool.submit(session.execute, call(at("04-04")).encode())
        try:
            waiting(url, 1)
            yield session, running
        finally:
            holder.rollback()
            running.exception(PATIENCE)


BEFORE_OPENINGS = "LOCK TABLE openings IN EXCLUSIVE MODE"
BEFORE_DELETION = "SELECT * FROM credit_transactions WHERE account_id = 1 AND sequence = 1 FOR UPDATE"


def test_a_reversal_that_comes_while_its_deduction_is_archived_is_refused(url: str, ledger: Ledger) -> None:
    """It waits for the account, and then looks for the deduction."""
    spent = next(entry for entry in history(ledger, "ann") if entry.amount == -5)
    with ThreadPoolExecutor(1) as pool:
        with stopped(url, BEFORE_OPENINGS):
            reversing = pool.submit(ledger.reverse, spent.id)
            waiting(url, 2)
        with pytest.raises(NotFound, match="archived"):
            reversing.result(PATIENCE)
    assert verify(ledger).problems == []
    assert [entry.amount for entry in history(ledger, "ann")] == [-6]


def test_the_guard_lets_go_of_nothing_for_anybody_else(url: str, ledger: Ledger) -> None:
    """While entries are being deleted; and new users go on, since no table is locked."""
    with stopped(url, BEFORE_DELETION):
        with (
            psycopg.connect(url) as other,
            pytest.raises(psycopg.errors.RaiseException, match="append-only"),
        ):
            other.execute("DELETE FROM credit_transactions WHERE account_id = 2")
        ledger.grant("new", 7, create=True)
        assert ledger.deduct("new", 3).balance == 1004
    assert len(history(ledger, "ann")) == 1


def test_one_that_is_killed_leaves_no_trace(url: str, ledger: Ledger) -> None:
    """Nothing of its last step is done; the next one does it."""
    before = dump(ledger)
    with stopped(url, BEFORE_DELETION) as (session, running):
        with psycopg.connect(url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", [session.info.backend_pid])
        assert isinstance(running.exception(PATIENCE), psycopg.OperationalError)
    assert dump(ledger) == before
    assert [count(ledger, table) for table in ("openings", "credit_transactions_archive")] == [0, 0]
    with psycopg.connect(url) as other, pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        other.execute("DELETE FROM credit_transactions")
    archive(url, at("04-04"))
    assert [len(history(ledger, name)) for name in ("ann", "ben")] == [1, 1]
    assert verify(ledger).problems == []


@pytest.mark.parametrize(
    "business",
    [
        "SELECT * FROM credit_balances WHERE account_id = 1 FOR UPDATE",
        "UPDATE accounts SET user_id = 'anna' WHERE id = 1",
    ],
)
def test_who_is_busy_is_left_for_the_next_time(business: str, url: str, ledger: Ledger) -> None:
    """It waits for nobody: who is renamed would wait for it in turn."""
    with psycopg.connect(url) as holder:
        holder.execute(business.encode())
        archive(url, at("04-04"))
        assert [len(history(ledger, name)) for name in ("ann", "ben")] == [5, 1]
        holder.rollback()
    archive(url, at("04-04"))
    assert [len(history(ledger, name)) for name in ("ann", "ben")] == [1, 1]


def test_an_account_whose_owner_is_busy_is_left_too(url: str, ledger: Ledger) -> None:
    """A reversal of what was spent before a merge locks the owner alone."""
    life = Story(None, at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    placeholder = f"polar:{life.customer['id']}"
    ledger.deduct(placeholder, 3, at=at("04-02"))
    ledger.link(placeholder, "ann")
    entries = len(history(ledger, "ann"))
    with psycopg.connect(url) as holder:
        holder.execute("SELECT * FROM credit_balances WHERE account_id = 1 FOR UPDATE")
        archive(url, at("04-04"))
        assert len(history(ledger, "ann")) == entries
    archive(url, at("04-04"))
    assert len(history(ledger, "ann")) < entries
    assert verify(ledger).problems == []


def test_deductions_reversals_and_purchases_run_while_it_archives(url: str, ledger: Ledger) -> None:
    """What was answered is there, once; the sums are those of one after the other."""
    users, done = ["ann", "ben", "cid"], threading.Event()
    ledger.grant("cid", 10_000, create=True)

    def spend(number: int) -> tuple[int, int]:
        luck, spent, ids = random.Random(number), 0, list[tuple[str, int]]()
        for turn in range(60):
            amount = luck.randrange(1, 6)
            receipt = ledger.deduct(luck.choice(users), amount, idempotency_key=f"{number}-{turn}")
            spent += amount
            ids.append((receipt.transaction.id, amount))
            if luck.random() < 0.3:
                id, given = ids.pop(luck.randrange(len(ids)))
                spent -= given if reversed_yet(ledger, id) else 0
            if luck.random() < 0.1:
                with ledger.hold(luck.choice(users), 2):
                    pass
        return spent, 60

    def buy() -> int:
        stories = [Story(f"new-{n}", at=at("04-01")) for n in range(12)]
        for story in stories:
            feed(ledger, story.purchase("pro"))
            refill(ledger, at=at("04-04"))
        return len(stories)

    def tidy() -> int:
        runs = 0
        while not done.is_set() or runs < 2:
            archive(url, at("12-31"), step=1 + runs % 3)
            runs += 1
        return runs

    before = sum(ledger.balance(user, at=at("04-05")).balance for user in users)
    with ThreadPoolExecutor(8) as pool:
        tidying = [pool.submit(tidy) for _ in range(2)]
        spending = [pool.submit(spend, number) for number in range(4)]
        buying = pool.submit(buy)
        spent = sum(each.result(PATIENCE)[0] for each in spending)
        assert buying.result(PATIENCE) == 12
        done.set()
        assert all(each.result(PATIENCE) > 1 for each in tidying)
    after = sum(ledger.balance(user, at=at("04-05")).balance for user in users)
    assert before - after == spent
    assert verify(ledger).problems == []
    assert count(ledger, "credit_transactions_archive") > 100


def reversed_yet(ledger: Ledger, id: str) -> bool:
    """Give a deduction back; say whether it was there still."""
    try:
        ledger.reverse(id)
    except NotFound:
        return False
    return True


def test_many_users_in_steps(postgres: str) -> None:
    """Each of them once, however many a step takes."""
    made = copy_of_template(postgres)
    database = Database(made)
    fill(database, users=60, entries=9)
    database.close()
    with Ledger(made, catalog()) as ledger:
        archive(made, at("12-31"), step=7)
        assert count(ledger, "openings") == 60
        assert verify(ledger).problems == []
        # The grant of each, and of every second one the four deductions that are settled.
        assert count(ledger, "credit_transactions_archive") == 60 + 30 * 4
