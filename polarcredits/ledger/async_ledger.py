"""The ledger for asyncio: the same operations, awaited; many tasks' deductions are committed together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from polarcredits.errors import HoldClosed
from polarcredits.ledger import spending
from polarcredits.ledger.async_batching import AsyncGroup
from polarcredits.ledger.batching import Stuck
from polarcredits.ledger.failing import closed
from polarcredits.ledger.holds import Hold
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.teller import teller_of
from polarcredits.ledger.threads import Threads
from polarcredits.ledger.values import Balance, HoldState, Receipt

P = ParamSpec("P")
T = TypeVar("T")


class AsyncLedger:
    """Credits of all users of one database, for the tasks of one event loop.

    >>> receipt = await ledger.deduct("alice", operation="render")

    Operations raise as those of `Ledger` do. A task that is cancelled while it waits has either done
    the whole of its operation or nothing: what had not begun does not begin.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._teller = teller_of(ledger.database)
        self._group = AsyncGroup(self._teller.spend, stuck=self._teller.stuck)
        self._closed = False
        self._threads = Threads()

    async def __aenter__(self) -> AsyncLedger:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Answer what was accepted, refuse what comes later, and close the database."""
        self._closed = True
        await self._group.close()
        await self._threads.ended()
        self._teller.close()
        await asyncio.to_thread(self._ledger.close)

    async def deduct(
        self,
        user: str,
        amount: int | None = None,
        *,
        operation: str = "api_call",
        quantity: int = 1,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        at: datetime | None = None,
    ) -> Receipt:
        """Spend credits as `Ledger.deduct` does; returns once it is on disk."""
        wanted = spending.request(
            self._ledger,
            user,
            amount,
            operation=operation,
            quantity=quantity,
            metadata=metadata,
            idempotency_key=idempotency_key,
            at=at,
        )
        try:
            spent = await self._group.ask(wanted) if spending.groupable(wanted) else None
        except Stuck:
            return await self._threads.run(self._ledger.deduct_apart, wanted)
        if spent is not None:
            return spent.receipt(wanted)
        return await self._threads.run(self._ledger.deducted, wanted, None)

    async def _run(self, work: Callable[P, T], *given: P.args, **options: P.kwargs) -> T:
        """Do in a thread what is not grouped, unless it comes after the close."""
        return await self._open_threads().run(work, *given, **options)

    def _open_threads(self) -> Threads:
        if self._closed:
            raise closed()
        return self._threads

    async def balance(self, user: str, *, at: datetime | None = None) -> Balance:
        """Return a user's credits. Raises UnknownUser."""
        return await self._run(self._ledger.balance, user, at=at)

    async def grant(self, user: str, amount: int, **options: Any) -> Receipt:
        """Give credits, with the options of `Ledger.grant`."""
        return await self._run(self._ledger.grant, user, amount, **options)

    async def reverse(
        self, transaction_id: str, *, reason: str | None = None, at: datetime | None = None
    ) -> Receipt:
        """Give the whole of a deduction back, once."""
        return await self._run(self._ledger.reverse, transaction_id, reason=reason, at=at)

    def hold(
        self,
        user: str,
        amount: int,
        *,
        ttl: timedelta = timedelta(minutes=15),
        operation: str | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        at: datetime | None = None,
    ) -> AsyncHold:
        """Reserve credits: `async with ledger.hold(…) as hold`, or `hold = await ledger.hold(…)`."""
        place = partial(
            self._ledger.hold,
            user,
            amount,
            ttl=ttl,
            operation=operation,
            metadata=metadata,
            idempotency_key=idempotency_key,
            at=at,
        )
        return AsyncHold(place, self._open_threads, keyed=idempotency_key is not None)

    async def capture(
        self, hold: str, amount: int | None = None, *, at: datetime | None = None
    ) -> tuple[Receipt, HoldState]:
        """Deduct *amount* (default all) of the hold with this id and free the rest."""
        return await self._run(self._ledger.holds.capture, hold, amount, at=at)

    async def release(self, hold: str, *, at: datetime | None = None) -> HoldState:
        """Free the hold with this id."""
        return await self._run(self._ledger.holds.release, hold, at=at)


class AsyncHold:
    """A hold that is placed when it is first awaited or entered, and once however many tasks do so.

    Leaving the block without a capture releases it, also where the task is cancelled, which does not wait
    for that. So does a cancellation while it is being placed; with an idempotency key it stays, for who asks
    again with the key.
    """

    def __init__(self, place: Callable[[], Hold], threads: Callable[[], Threads], *, keyed: bool) -> None:
        self._wanted = place
        self._threads = threads
        self._keyed = keyed
        self._hold: Hold | None = None
        self._placing = asyncio.Lock()

    def __await__(self) -> Generator[Any, None, AsyncHold]:
        return self._place().__await__()

    async def _place(self) -> AsyncHold:
        async with self._placing:
            if self._hold is None:
                threads = self._threads()
                self._hold = await (
                    threads.run(self._wanted)
                    if self._keyed
                    else threads.run_or_undo(self._wanted, Hold.release)
                )
        return self

    async def __aenter__(self) -> AsyncHold:
        return await self._place()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._placed.is_open:
            try:
                await self.release()
            except HoldClosed:
                return

    @property
    def _placed(self) -> Hold:
        if self._hold is None:
            raise RuntimeError("The hold is not placed yet: await it, or enter it with `async with`.")
        return self._hold

    @property
    def id(self) -> str:
        """The hold's id."""
        return self._placed.id

    @property
    def state(self) -> HoldState:
        """The hold as this object last saw it."""
        return self._placed.state

    async def capture(self, amount: int | None = None) -> Receipt:
        """Deduct *amount* (default all) of the hold and free the rest. Raises HoldClosed."""
        return await self._threads().run(self._placed.capture, amount)

    async def release(self) -> HoldState:
        """Free the whole hold. Raises HoldClosed."""
        return await self._threads().run_surely(self._placed.release)
