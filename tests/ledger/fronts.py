"""The ways in: the same ledger whose deductions go alone, in company, or through the asyncio twin."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

from polarcredits.ledger.async_ledger import AsyncLedger
from polarcredits.ledger.batching import Group
from polarcredits.ledger.hotpath import Spend, Spent
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.values import Receipt
from polarcredits.plans import Catalog


class Crowded(Ledger):
    """Every deduction shares its batch with one of a stranger, so that it is decided set-wise."""

    def __init__(self, url: str, catalog: Catalog, **options: Any) -> None:
        super().__init__(url, catalog, **options)
        if self._group is not None:
            self._group = Group(self._in_company)

    def _in_company(self, batch: Sequence[Spend]) -> Sequence[Spent | Exception | None]:
        return self._teller.spend([*batch, batch[0]._replace(user="stranger")])[:-1]


class Awaited(Ledger):
    """Every deduction is awaited on an event loop in a thread of its own."""

    def __init__(self, url: str, catalog: Catalog, **options: Any) -> None:
        super().__init__(url, catalog, **options)
        if self._group is None:
            return
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._twin = AsyncLedger(Ledger(url, catalog, **options))

    def deduct(self, user: str, amount: int | None = None, **options: Any) -> Receipt:
        """Spend through the twin."""
        if self._group is None:
            return super().deduct(user, amount, **options)
        waiting = asyncio.run_coroutine_threadsafe(self._twin.deduct(user, amount, **options), self._loop)
        return waiting.result(30)

    def close(self) -> None:
        """Close both."""
        if self._group is not None and not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._twin.close(), self._loop).result(30)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        super().close()
