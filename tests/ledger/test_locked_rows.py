"""PostgreSQL: a user whose row is locked by somebody else holds up nobody but those who want that user."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from polarcredits.ledger.async_ledger import AsyncLedger
from polarcredits.ledger.hotpath import Spent
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from tests.ledger.conftest import copy_of_template
from tests.ledger.worlds import catalog, requested


def test_a_row_that_is_locked_holds_up_nobody_else(postgres: str) -> None:
    """Alone, in a batch or awaited: who asks for other users is served, and that one when it is free."""
    url = copy_of_template(postgres)
    with Ledger(url, catalog()) as ledger, Ledger(url, catalog()) as other, ThreadPoolExecutor(4) as pool:
        for user in ("ann", "bob"):
            ledger.add_user(user)
        batch = [requested(ledger, user) for user in ("ann", "bob", "ann")]

        async def tasks() -> None:
            twin = AsyncLedger(Ledger(url, catalog()))
            waits = asyncio.create_task(twin.deduct("ann", 1))
            await asyncio.sleep(0.05)
            assert (await twin.deduct("bob", 1)).balance == 998
            assert not waits.done()
            held.commit()
            assert (await waits).balance < 999
            await twin.close()

        with other.database.engine.connect() as connection:
            held = connection.begin()
            other.using(connection).deduct("ann", 1)
            waits = pool.submit(ledger.deduct, "ann", 1)
            missed, spent, missed_too = pool.submit(other._teller.spend, batch).result(10)
            assert missed is missed_too is None
            assert isinstance(spent, Spent)
            assert spent.balance == 999
            asyncio.run(tasks())
            waits.result(10)
        with other.database.engine.connect() as connection, connection.begin():
            other.using(connection).deduct("ann", 1)
            waits = pool.submit(ledger.deduct, "ann", 1)
            time.sleep(0.05)
            assert ledger.deduct("bob", 1).balance == 997
            assert not waits.done()
        waits.result(10)
        assert [ledger.balance(user).balance for user in ("ann", "bob")] == [995, 997]
        assert verify(ledger).problems == []


def test_an_application_that_waits_for_another_of_its_threads(postgres: str) -> None:
    """One has ann and wants bob, the other waits for ann: no circle that no database could see."""
    with Ledger(copy_of_template(postgres), catalog()) as ledger, ThreadPoolExecutor(1) as pool:
        for user in ("ann", "bob"):
            ledger.add_user(user)
        with ledger.begin() as connection:
            ledger.using(connection).deduct("ann", 1)
            waits = pool.submit(ledger.deduct, "ann", 1)
            time.sleep(0.05)
            assert ledger.deduct("bob", 1).balance == 999
            assert not waits.done()
        assert waits.result(10).balance == 998
