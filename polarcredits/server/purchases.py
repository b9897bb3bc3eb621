"""What became of a checkout, for the page on which its buyer lands.

A checkout's id is a secret of Polar's and the buyer's. Whoever holds it sees the plan and the balance of
the account that it was opened for, for a day; never the name, the address, payments or links. Where nobody
was named, Polar gives the order to whoever has the e-mail address that the visitor typed: then only an
account that began with this purchase is shown.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from polarcredits.checkouts import has_order
from polarcredits.errors import NotFound, PolarUnavailable
from polarcredits.ledger.views import Statement, buyer_of, statement
from polarcredits.polar_values import CheckoutRow
from polarcredits.server.limits import Throttle, TooMany
from polarcredits.server.shop import Shop
from polarcredits.sync import sync_customer

State = Literal["open", "confirming", "done", "over", "failed", "expired"]
SHOWN_AFTER_EXPIRY = timedelta(hours=1)
"""A checkout lives for a day; its buyer is shown the account for an hour longer."""
WEBHOOK_FIRST = 2
"""Looks that are left to the webhook before Polar is asked for the order."""
_KEPT = timedelta(seconds=1)
_UNKNOWN_KEPT = timedelta(seconds=30)
_PAUSE = timedelta(seconds=5)
_MOST = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """How far a purchase is; the account is told only once it is `done`, and only to whose it is."""

    state: State
    account: Statement | None = None


@dataclass(slots=True)
class _Memory:
    """What is known of one checkout, and when Polar was asked."""

    checkout: CheckoutRow | None = None
    unknown_at: datetime | None = None
    synced_at: datetime | None = None
    told: Purchase | None = None
    told_at: datetime | None = None
    looking: asyncio.Task[Purchase] | None = None


class Purchases:
    """Looks purchases up: one look at a time for a checkout, its answer kept for a second."""

    def __init__(self, shop: Shop, throttle: Throttle) -> None:
        self._shop = shop
        self._throttle = throttle
        self._memories: OrderedDict[str, _Memory] = OrderedDict()

    async def look(self, id: str, *, looks: int, client: str) -> Purchase:
        """Return how far the checkout *id* is, seen so many times before.

        Raises NotFound where Polar has no such checkout, TooMany, PolarUnavailable, PolarRefused.
        """
        memory = self._memory(id)
        now = self._shop.now()
        if memory.told is not None and memory.told_at is not None and now - memory.told_at < _KEPT:
            return memory.told
        if memory.unknown_at is not None and now - memory.unknown_at < _UNKNOWN_KEPT:
            raise _no_checkout()
        if memory.looking is None:
            memory.looking = asyncio.create_task(self._look(id, memory, looks, client))
        looking = memory.looking
        try:
            return await asyncio.shield(looking)
        finally:
            if looking.done():
                memory.looking = None

    def _memory(self, id: str) -> _Memory:
        memory = self._memories.setdefault(id, _Memory())
        self._memories.move_to_end(id)
        if len(self._memories) > _MOST:
            self._memories.popitem(last=False)
        return memory

    async def _look(self, id: str, memory: _Memory, looks: int, client: str) -> Purchase:
        purchase = await self._find(id, memory, looks, client)
        memory.told, memory.told_at = purchase, self._shop.now()
        return purchase

    async def _find(self, id: str, memory: _Memory, looks: int, client: str) -> Purchase:
        """Ask our own database first, and Polar as far as that does not know."""
        bought = await self._bought(memory.checkout)
        if bought is not None:
            return bought
        if memory.checkout is None or memory.checkout.status != "succeeded":
            checkout = await self._checkout(id, memory, client)
            bought = await self._bought(checkout)
            if bought is not None:
                return bought
        else:
            checkout = memory.checkout
        if checkout.status in ("failed", "expired"):
            return Purchase(state="failed" if checkout.status == "failed" else "expired")
        if checkout.status != "succeeded":
            return Purchase(state="open" if checkout.status == "open" else "confirming")
        if looks >= WEBHOOK_FIRST and await self._learn(checkout, memory):
            return await self._bought(checkout) or Purchase(state="confirming")
        return Purchase(state="confirming")

    async def _checkout(self, id: str, memory: _Memory, client: str) -> CheckoutRow:
        """Ask Polar for a checkout; who asks for many strange ones is stopped."""
        try:
            self._throttle.take(client if memory.checkout is None else id)
            checkout = await self._shop.ask(lambda polar: polar.checkout(id))
        except (PolarUnavailable, TooMany):
            if memory.checkout is None:
                raise
            return memory.checkout
        if checkout is None:
            memory.unknown_at = self._shop.now()
            raise _no_checkout()
        memory.checkout = checkout
        return checkout

    async def _bought(self, checkout: CheckoutRow | None) -> Purchase | None:
        """Return the account that a checkout led to, if our database has its paid order."""
        if checkout is None or checkout.customer_id is None:
            return None
        customer, id, ledger = checkout.customer_id, checkout.id, self._shop.ledger
        shown_until = None if checkout.expires_at is None else checkout.expires_at + SHOWN_AFTER_EXPIRY
        over = shown_until is None or self._shop.now() >= shown_until

        def work() -> Purchase | None:
            buyer = buyer_of(ledger, customer, id)
            if buyer is None or over:
                return None if buyer is None else Purchase(state="over")
            account = statement(ledger, buyer.user) if buyer.opened else None
            return Purchase(state="done", account=account)

        return await self._shop.read(work)

    async def _learn(self, checkout: CheckoutRow, memory: _Memory) -> bool:
        """Take from Polar what a late webhook will tell; say whether there was something to take."""
        now = self._shop.now()
        customer = checkout.customer_id
        if customer is None or (memory.synced_at is not None and now - memory.synced_at < _PAUSE):
            return False
        memory.synced_at = now
        ledger, environment = self._shop.syncing, self._shop.settings.environment
        try:
            if not await self._shop.ask(lambda polar: has_order(polar, checkout)):
                return False
            await self._shop.ask(
                lambda polar: sync_customer(ledger, polar, customer, environment=environment)
            )
        except (PolarUnavailable, TooMany):
            return False
        return True


def _no_checkout() -> NotFound:
    return NotFound("Polar has no such checkout.")
