"""Deductions of many callers at once: exact totals, each its own answer, nothing acknowledged lost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from polarcredits.errors import (
    AccountClosed,
    DatabaseBusy,
    DatabaseError,
    HoldClosed,
    InsufficientCredits,
    KeyReused,
    PolarCreditsError,
    UnknownUser,
)
from polarcredits.ledger import schema, spending
from polarcredits.ledger.async_ledger import AsyncLedger
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.values import Receipt
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import history
from tests.ledger.conftest import copy_of_template
from tests.ledger.worlds import at, catalog

Call = Callable[[], Receipt]


def gathered(ledger: Ledger, calls: list[Call]) -> list[Future[Receipt]]:
    """Let all calls wait behind one that waits for a writer, so that they are one batch."""
    ledger.add_user("first")
    with ThreadPoolExecutor(len(calls) + 1) as pool:
        group = ledger._group
        assert group is not None
        with ledger.begin() as connection:
            if not ledger.database.sqlite:
                connection.execute(text("SELECT * FROM credit_balances FOR UPDATE"))
            asked = []
            for number, call in enumerate([lambda: ledger.deduct("first", 1), *calls]):
                asked.append(pool.submit(call))
                deadline = time.monotonic() + 10
                while not group._led or len(group._queue) < number:
                    assert time.monotonic() < deadline
                    time.sleep(0.001)
        return asked[1:]


def outcome(call: Future[Receipt]) -> object:
    """Return the kind of the error, else the balance."""
    error = call.exception()
    return call.result().balance if error is None else type(error)


def test_a_batch_is_decided_in_order_as_if_one_after_the_other(ledger: Ledger) -> None:
    """§§5.2, 5.4: each has its own answer; the refused leave the others alone."""
    for user in ("zoe", "ann", "ben"):
        ledger.add_user(user)
    ledger.hold("ben", 900)
    calls: list[Call] = [
        lambda: ledger.deduct("zoe", 1),
        lambda: ledger.deduct("ann", 600, idempotency_key="a"),
        lambda: ledger.deduct("ann", 500),
        lambda: ledger.deduct("ann", 300, idempotency_key="b"),
        lambda: ledger.deduct("nobody", 1),
        lambda: ledger.deduct("ben", 101),
        lambda: ledger.deduct("ben", 100),
        lambda: ledger.deduct("ann", 600, idempotency_key="a"),
        lambda: ledger.deduct("ann", 601, idempotency_key="a"),
        lambda: ledger.deduct("ann", 100),
        lambda: ledger.deduct("zoe", 3, idempotency_key="z"),
        lambda: ledger.deduct("zoe", 3, idempotency_key="z"),
    ]
    asked = gathered(ledger, calls)
    assert [outcome(call) for call in asked] == [
        999,
        400,
        InsufficientCredits,
        100,
        UnknownUser,
        InsufficientCredits,
        900,
        400,
        KeyReused,
        0,
        996,
        996,
    ]
    assert [call.result().replayed for call in asked if not call.exception()] == [
        *[False] * 4,
        *[True, False, False, True],
    ]
    assert asked[7].result().transaction == asked[1].result().transaction
    assert [entry.balance_after for entry in history(ledger, "ann")] == [0, 100, 400, 1000]
    assert verify(ledger).problems == []


def test_keys_in_use_are_seen_by_a_batch(ledger: Ledger) -> None:
    """§5.4: one key space for entries and holds; the same request is answered again, others refused."""
    ledger.add_user("ann")
    first = ledger.deduct("ann", 5, idempotency_key="spent")
    ledger.hold("ann", 50, idempotency_key="held")
    before = history(ledger, "ann"), ledger.balance("ann")
    asked = gathered(
        ledger,
        [
            lambda: ledger.deduct("nobody", 1),
            lambda: ledger.deduct("ann", 5, idempotency_key="spent"),
            lambda: ledger.deduct("ann", 50, idempotency_key="held"),
            lambda: ledger.deduct("ann", 6, idempotency_key="spent"),
        ],
    )
    assert [outcome(call) for call in asked] == [UnknownUser, 995, KeyReused, KeyReused]
    assert asked[1].result().transaction == first.transaction
    assert (history(ledger, "ann"), ledger.balance("ann")) == before


def test_what_is_due_is_settled_for_one_of_a_batch(ledger: Ledger) -> None:
    """§5.8: expired credits are not spent; the others of the batch are served all the same."""
    ledger.grant("ann", 100, expires_at=at("05-01"), create=True, at=at("04-01"))
    ledger.grant("ben", 100, create=True, at=at("04-01"))
    late = at("05-02")
    asked = gathered(
        ledger,
        [
            lambda: ledger.deduct("nobody", 1),
            lambda: ledger.deduct("ann", 1001, at=late),
            lambda: ledger.deduct("ben", 1100, at=late),
            lambda: ledger.deduct("ann", 1000, at=late),
        ],
    )
    assert [outcome(call) for call in asked] == [UnknownUser, InsufficientCredits, 0, 0]
    assert verify(ledger).problems == []


def test_a_closed_account_is_refused_in_a_batch(ledger: Ledger) -> None:
    """§4.9."""
    for user in ("ann", "ben"):
        ledger.add_user(user)
    with ledger.begin() as connection:
        connection.execute(text("INSERT INTO customers (id, external_id, deleted) VALUES ('c1', 'ann', 1)"))
        connection.execute(
            text(
                "UPDATE credit_balances SET closed = 1 WHERE account_id ="
                " (SELECT id FROM accounts WHERE user_id = 'ann')"
            )
        )
    calls: list[Call] = [
        lambda: ledger.deduct("nobody", 1),
        lambda: ledger.deduct("ann", 1),
        lambda: ledger.deduct("ben", 1),
    ]
    assert [outcome(call) for call in gathered(ledger, calls)] == [UnknownUser, AccountClosed, 999]
    assert ledger.balance("ann").balance == 1000


def test_a_user_id_that_no_database_can_keep_spoils_no_batch(ledger: Ledger) -> None:
    """It goes alone, and is refused alone."""
    ledger.add_user("ann")
    for user, together in (("ann", True), ("\ud800", False), ("a\x00b", False)):
        wanted = spending.request(
            ledger, user, 1, operation="x", quantity=1, metadata=None, idempotency_key=None, at=None
        )
        assert spending.groupable(wanted) is together
    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(ledger.deduct, "ann", 1) for _ in range(20)]
        bad = [pool.submit(ledger.deduct, user, 1) for user in ("\ud800", "a\x00b") * 5]
    assert all(isinstance(call.exception(), PolarCreditsError) for call in bad)
    assert [call.exception() for call in good] == [None] * 20
    assert ledger.balance("ann").balance == 980


def test_many_threads_and_writers_of_all_kinds(ledger: Ledger) -> None:
    """§5.3: deductions in batches beside grants, holds and reversals of other threads; exact totals."""
    ledger.grant("ann", 9000, create=True)
    ledger.add_user("ben")

    def spend(number: int) -> int:
        key = f"k{number // 2}"
        receipt = ledger.deduct("ann", 2, idempotency_key=key)
        return 0 if receipt.replayed else 2

    def give(_: int) -> int:
        ledger.grant("ann", 3)
        return -3

    def undo(_: int) -> int:
        ledger.reverse(ledger.deduct("ann", 5).transaction.id)
        return 0

    def reserve(_: int) -> int:
        with ledger.hold("ann", 10) as hold:
            hold.capture(4)
        return 4

    with ThreadPoolExecutor(16) as pool:
        work = [pool.submit(spend, number) for number in range(200)]
        work += [pool.submit(other, 0) for other in (give, undo, reserve) for _ in range(8)]
        work += [pool.submit(lambda: 0 * ledger.deduct("ben", 1).balance) for _ in range(50)]
        spent = sum(call.result() for call in work)
    assert spent == 200 - 24 + 32
    assert ledger.balance("ann").balance == 10_000 - spent
    assert ledger.balance("ann").held == 0
    assert ledger.balance("ben").balance == 950
    assert verify(ledger).problems == []


def test_one_key_from_many_callers_posts_once(ledger: Ledger) -> None:
    """§5.4: one entry; all the others are told the same."""
    ledger.add_user("ann")
    with ThreadPoolExecutor(16) as pool:
        receipts = list(pool.map(lambda _: ledger.deduct("ann", 7, idempotency_key="k"), range(32)))
    assert {receipt.transaction.id for receipt in receipts} == {receipts[0].transaction.id}
    assert sorted(receipt.replayed for receipt in receipts) == [False] + [True] * 31
    assert ledger.balance("ann").balance == 993


def test_a_key_that_a_hold_takes_meanwhile(ledger: Ledger) -> None:
    """A deduction that waits for the row sees the keys that were taken before it got the row."""
    ledger.add_user("ann")
    with ThreadPoolExecutor(2) as pool:
        with ledger.begin() as connection:
            hold = ledger.using(connection).hold("ann", 50, idempotency_key="k")
            waiting = pool.submit(ledger.deduct, "ann", 50, idempotency_key="k")
            time.sleep(0.3)
            assert not waiting.done()
            ledger.using(connection).holds.release(hold.id)
        with pytest.raises(KeyReused):
            waiting.result()
    assert ledger.balance("ann").balance == 1000


def test_tasks_spend_to_zero_and_not_below(url: str) -> None:
    """§5.3 through the asyncio twin: totals are exact, the rest are refused."""

    async def main() -> None:
        async with AsyncLedger(Ledger(url, catalog())) as ledger:
            await ledger.grant("ann", 1, create=True)
            calls = (ledger.deduct("ann", 3, idempotency_key=f"k{n}") for n in range(400))
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(isinstance(result, Receipt) for result in results) == 333
            assert sum(isinstance(result, InsufficientCredits) for result in results) == 67
            assert (await ledger.balance("ann")).balance == 2

    asyncio.run(main())
    with Ledger(url, catalog()) as ledger:
        assert verify(ledger).problems == []


def test_the_asyncio_twin_does_the_rest_too(url: str) -> None:
    """Grants, reversals and holds; a hold that is left is released."""

    async def main() -> None:
        async with AsyncLedger(Ledger(url, catalog())) as ledger:
            await ledger.grant("ann", 100, create=True)
            spent = await ledger.deduct("ann", 10, metadata={"a": "1"})
            assert spent.transaction.metadata == {"a": "1"}
            assert (await ledger.reverse(spent.transaction.id)).balance == 1100
            async with ledger.hold("ann", 50) as hold:
                assert (await ledger.balance("ann")).held == 50
                assert (await hold.capture(31)).balance == 1069
            with pytest.raises(ZeroDivisionError):
                async with ledger.hold("ann", 50):
                    raise ZeroDivisionError
            kept = await ledger.hold("ann", 20)
            assert (await ledger.balance("ann")).held == 20
            assert (await ledger.release(kept.id)).status == "released"
            with pytest.raises(HoldClosed):
                await ledger.capture(kept.id)
            assert (await ledger.balance("ann")).available == 1069
        with pytest.raises(DatabaseError, match="closed"):
            await ledger.deduct("ann", 1)

    asyncio.run(main())


def test_cancelled_tasks_have_spent_all_or_nothing(url: str) -> None:
    """Whatever the moment of the cancellation, entries and balance agree, and the twin goes on."""

    async def main() -> None:
        async with AsyncLedger(Ledger(url, catalog())) as ledger:
            await ledger.grant("ann", 1000, create=True)
            for pause in (0, 0, 0.001, 0.002, 0.004):
                tasks = [asyncio.create_task(ledger.deduct("ann", 1)) for _ in range(30)]
                await asyncio.sleep(pause)
                for task in tasks[::2]:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(isinstance(result, Receipt) for result in results[1::2])
            assert (await ledger.deduct("ann", 1)).balance <= 2000 - 76

    asyncio.run(main())
    with Ledger(url, catalog()) as ledger:
        entries = history(ledger, "ann", type="deduct", limit=1000)
        assert ledger.balance("ann").balance == 2000 - len(entries)
        assert verify(ledger).problems == []


def test_a_failure_in_the_middle_of_a_batch_answers_everybody(tmp_path: Path) -> None:
    """Nothing of the batch is written, each caller is told, and the next batch goes on."""
    url = f"sqlite:///{tmp_path / 'credits.db'}"
    with Ledger(url, catalog()) as ledger:
        for user in ("ann", "ben", "cid"):
            ledger.add_user(user)
        with ledger.begin() as connection:
            connection.execute(
                text(
                    "CREATE TRIGGER broken BEFORE INSERT ON credit_transactions WHEN NEW.amount = -13"
                    " BEGIN SELECT RAISE(ABORT, 'the disk is on fire'); END"
                )
            )
        calls: list[Call] = [
            lambda: ledger.deduct("nobody", 1),
            lambda: ledger.deduct("ann", 1),
            lambda: ledger.deduct("ben", 13),
            lambda: ledger.deduct("cid", 1),
        ]
        asked = gathered(ledger, calls)
        assert [outcome(call) for call in asked] == [DatabaseError] * 4
        assert "on fire" in str(asked[1].exception())
        untouched = ("ann", "ben", "cid")
        assert [ledger.balance(user).balance for user in untouched] == [1000] * 3
        assert [len(history(ledger, user)) for user in untouched] == [1] * 3
        with ledger.begin() as connection:
            connection.execute(text("DROP TRIGGER broken"))
        assert ledger.deduct("ben", 13).balance == 987


def test_a_server_that_ends_connections_loses_nothing(postgres: str) -> None:
    """Callers whose connection died are told, nothing moved, and the next call connects again."""
    url = copy_of_template(postgres)
    end = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND {}"
    )
    with Ledger(url, catalog()) as ledger, ThreadPoolExecutor(8) as pool:
        ledger.add_user("ann")
        assert ledger.deduct("ann", 1).balance == 999
        with ledger.begin() as connection:
            connection.execute(text("SELECT * FROM credit_balances FOR UPDATE"))
            asked = [pool.submit(ledger.deduct, "ann", 1) for _ in range(4)]
            time.sleep(0.3)
            connection.execute(text(end.format("wait_event_type = 'Lock'")))
            assert isinstance(asked[0].exception(10), DatabaseError)
        failed = sum(isinstance(call.exception(), DatabaseError) for call in asked)
        assert failed >= 1
        assert ledger.balance("ann").balance == 999 - (4 - failed)
        assert ledger.deduct("ann", 1).balance == 998 - (4 - failed)


def test_a_closed_ledger_spends_nothing(ledger: Ledger) -> None:
    """What was acknowledged is there; what comes later is refused."""
    ledger.add_user("ann")
    ledger.deduct("ann", 1)
    url = ledger.database.engine.url.render_as_string(hide_password=False)
    ledger.close()
    doors: list[Callable[[], object]] = [
        lambda: ledger.deduct("ann", 1),
        lambda: ledger.grant("ann", 5),
        lambda: ledger.hold("ann", 5),
        lambda: ledger.balance("ann"),
        lambda: ledger.add_user("bob"),
        lambda: ledger.begin().__enter__(),
    ]
    for door in doors:
        with pytest.raises(DatabaseError, match="closed"):
            door()
    assert ledger.database.connections() == (0, 0)
    with Ledger(url, catalog()) as later:
        assert [entry.amount for entry in history(later, "ann")] == [-1, 1000]


def test_a_closed_async_ledger_refuses_what_comes_later(url: str) -> None:
    """And answers what it had accepted: what the fast way misses too."""

    async def trial() -> None:
        ledger = AsyncLedger(Ledger(url, catalog()))
        await ledger.deduct("ann", 1)
        accepted = [asyncio.create_task(ledger.deduct("ann", 5000)) for _ in range(3)]
        accepted.append(asyncio.create_task(ledger.grant("ann", 7)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(ledger.close())
        await asyncio.sleep(0)
        with pytest.raises(DatabaseError, match="closed"):
            await ledger.grant("ann", 5)
        assert not closing.done()
        await closing
        told = await asyncio.gather(*accepted, return_exceptions=True)
        assert [type(answer) for answer in told] == [InsufficientCredits] * 3 + [Receipt]
        hold = ledger.hold("ann", 5)
        for late in (ledger.deduct("ann", 1), ledger.grant("ann", 5), ledger.balance("ann"), hold):
            with pytest.raises(DatabaseError, match="closed"):
                await late

    with Ledger(url, catalog()) as ledger:
        ledger.add_user("ann")
        asyncio.run(trial())
        assert ledger.balance("ann").balance == 1006


def test_an_application_that_waits_for_itself_is_told(ledger: Ledger) -> None:
    """A deduction outside `using` cannot wait for ever for a transaction that its own thread has open."""
    if not ledger.database.sqlite:
        return
    ledger.add_user("ann")
    ledger.database.patience = 0.1
    with ledger.begin(), pytest.raises(DatabaseBusy):
        ledger.deduct("ann", 1)
    assert ledger.balance("ann").balance == 1000


def test_an_open_ledger_keeps_no_process_alive(tmp_path: Path) -> None:
    """Neither front needs to be closed for the process to end."""
    script = """
import asyncio, sys
from polarcredits import open_ledger, open_ledger_async
url = sys.argv[1]
ledger = open_ledger(url)
ledger.add_user("ann")
ledger.deduct("ann", 1)
async def main():
    twin = open_ledger_async(url)
    await twin.deduct("ann", 1)
asyncio.run(main())
"""
    url = f"sqlite:///{tmp_path / 'credits.db'}"
    done = subprocess.run([sys.executable, "-c", script, url], timeout=30, cwd=tmp_path)
    assert done.returncode == 0
    with Ledger(url, catalog()) as ledger:
        assert ledger.balance("ann").balance == 998


def test_the_pool_is_set_in_the_url(postgres: str) -> None:
    """Sizes and prepared statements; what is no number is refused, naming the option."""
    url = copy_of_template(postgres)
    joint = "&" if "?" in url else "?"
    with Ledger(f"{url}{joint}pool_size=2&max_overflow=0&prepare_threshold=none", catalog()) as ledger:
        ledger.add_user("ann")
        for _ in range(8):
            ledger.deduct("ann", 1)
        with ledger.begin() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            assert driver.prepare_threshold is None
            count = connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar()
            assert count == 0
    with pytest.raises(DatabaseError, match="pool_size"):
        schema.open_database(f"{url}{joint}pool_size=many")
