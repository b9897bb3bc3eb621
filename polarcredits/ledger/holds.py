"""Holds: credits set aside for work of unknown cost (docs/rules.md §5.7)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, insert, select

from polarcredits.errors import (
    AccountClosed,
    HoldClosed,
    InsufficientCredits,
    InvalidInput,
    NotFound,
)
from polarcredits.ledger import identity, requests
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import Call, Details, LoadedAccount, OpenHold
from polarcredits.ledger.reconcile import Settled, refuse_earlier, settle, true_at, write
from polarcredits.ledger.values import HoldState, Receipt, transaction
from polarcredits.lots import Draw, reserve
from polarcredits.periods import from_micros, to_micros

if TYPE_CHECKING:
    from polarcredits.ledger.ledger import Ledger

LONGEST = timedelta(hours=24)


class Hold:
    """An open hold. As a context manager it is released at the end unless it was captured."""

    def __init__(self, holds: Holds, state: HoldState) -> None:
        self._holds = holds
        self.state = state
        self._open = state.status == "open"

    @property
    def id(self) -> str:
        """The hold's id."""
        return self.state.id

    @property
    def is_open(self) -> bool:
        """Whether it was neither captured nor released through this object."""
        return self._open

    def capture(self, amount: int | None = None) -> Receipt:
        """Deduct *amount* (default all) of the hold and free the rest. Raises HoldClosed."""
        receipt, self.state = self._holds.capture(self.id, amount)
        self._open = False
        return receipt

    def release(self) -> HoldState:
        """Free the whole hold. Raises HoldClosed."""
        self.state = self._holds.release(self.id)
        self._open = False
        return self.state

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._open:
            try:
                self.release()
            except HoldClosed:
                self._open = False


class Holds:
    """Holds of one ledger, by id."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def place(
        self,
        user: str,
        amount: int,
        *,
        ttl: timedelta,
        operation: str | None,
        metadata: Mapping[str, str] | None,
        key: str | None,
        at: datetime | None,
    ) -> Hold:
        """Reserve *amount* for at most *ttl* (24 hours)."""
        requests.check_amount(amount)
        if ttl is None or not timedelta(0) < requests.check_duration(ttl, "How long a hold lasts") <= LONGEST:
            raise InvalidInput("A hold lasts more than 0 seconds and at most 24 hours.")
        meta = requests.check_metadata(metadata)
        call = self._ledger.call(at)
        requests.check_key(key)
        requests.check_text(operation, "The operation")
        request = requests.digest(kind="hold", amount=amount, ttl=ttl, operation=operation, meta=meta)

        def work(connection: Connection) -> Hold:
            own, account_id = identity.find(connection, user)
            settled = settle(connection, self._ledger.catalog, account_id, call, lock=True)
            account = settled.account
            if key:
                row = requests.find_key(connection, (own, account.id), key, request)
                if row is not None:
                    return Hold(self, _state(row, user, account, replayed=True))
            refuse_earlier(account, call)
            if account.closed:
                raise AccountClosed(user)
            if account.available < amount:
                raise InsufficientCredits(user, required=amount, available=account.available)
            parts = reserve(account.book.lots, amount)
            account.held += amount
            hold = OpenHold(f"hold_{uuid.uuid4().hex}", amount, settled.now + ttl, parts)
            account.holds.append(hold)
            after = true_at(connection, self._ledger.catalog, account, call)
            write(connection, after, call)
            values = {
                "id": hold.id,
                "account_id": account.id,
                "key_account": account.id,
                "amount": amount,
                "captured": 0,
                "status": "open",
                "operation": operation,
                "meta": meta,
                "parts": json.dumps([(lot.id, credits) for lot, credits in parts]),
                "actor": call.actor,
                "idempotency_key": key,
                "request": request if key else None,
                "placed_at": to_micros(settled.now),
                "expires_at": to_micros(hold.expires_at),
            }
            connection.execute(insert(t.holds).values(values))
            state = HoldState(
                id=hold.id,
                user=user,
                amount=amount,
                captured=0,
                status="open",
                expires_at=hold.expires_at,
                available=account.available,
            )
            return Hold(self, state)

        return self._ledger.in_transaction(work)

    def capture(
        self, id: str, amount: int | None = None, *, at: datetime | None = None
    ) -> tuple[Receipt, HoldState]:
        """Deduct *amount* (default all) of a hold and free the rest. Raises HoldClosed, NotFound."""
        if amount is not None:
            requests.check_amount(amount)
        call = self._ledger.call(at)

        def work(connection: Connection) -> tuple[Receipt, HoldState]:
            row, settled, hold = self._open(connection, id, call)
            wanted = hold.amount if amount is None else amount
            if wanted > hold.amount:
                raise InvalidInput(f"The hold is of {hold.amount}; {wanted} cannot be captured.")
            account = settled.account
            if account.closed:
                raise AccountClosed(account.user)
            account.close_hold(hold, "captured", wanted)
            details = Details(operation=row.operation, meta=row.meta)
            entry = account.post(call, "deduct", -wanted, details=details)
            balance, left, draws = account.balance + wanted, wanted, []
            for lot, credits in hold.parts:
                take = min(left, credits)
                if take:
                    lot.used += take
                    lot.remaining -= take
                    draws.append(Draw(lot, take, balance, balance - take))
                    balance, left = balance - take, left - take
            account.record_draws(draws, account.sequence, account.sequence)
            write(connection, true_at(connection, self._ledger.catalog, account, call), call)
            receipt = Receipt(
                transaction=transaction(entry, account.user),
                balance=account.balance,
                available=account.available,
            )
            return receipt, _state(row, account.user, account, status="captured", captured=wanted)

        return self._ledger.in_transaction(work)

    def release(self, id: str, *, at: datetime | None = None) -> HoldState:
        """Free the whole hold. Raises HoldClosed, NotFound."""
        call = self._ledger.call(at)

        def work(connection: Connection) -> HoldState:
            row, settled, hold = self._open(connection, id, call)
            account = settled.account
            account.close_hold(hold, "released")
            write(connection, true_at(connection, self._ledger.catalog, account, call), call)
            return _state(row, account.user, account, status="released")

        return self._ledger.in_transaction(work)

    def _open(self, connection: Connection, id: str, call: Call) -> tuple[Row[Any], Settled, OpenHold]:
        h = t.holds.c
        known = isinstance(id, str) and "\0" not in id
        row = connection.execute(select(t.holds).where(h.id == id)).first() if known else None
        if row is None:
            raise NotFound(f"No hold {id!r}. Place one with: polarcredits credits hold USER AMOUNT", hold=id)
        settled = settle(connection, self._ledger.catalog, row.account_id, call, lock=True)
        row = connection.execute(select(t.holds).where(h.id == id)).one()
        hold = next((hold for hold in settled.account.holds if hold.id == id), None)
        if hold is None:
            raise HoldClosed(id, "lapsed" if row.status == "open" else row.status)
        refuse_earlier(settled.account, call)
        return row, settled, hold


def _state(
    row: Row[Any],
    user: str,
    account: LoadedAccount,
    *,
    status: str | None = None,
    captured: int | None = None,
    replayed: bool = False,
) -> HoldState:
    if status is None and row.status == "open" and all(hold.id != row.id for hold in account.holds):
        status = "lapsed"
    return HoldState(
        id=row.id,
        user=user,
        amount=row.amount,
        captured=row.captured if captured is None else captured,
        status=status or row.status,
        expires_at=from_micros(row.expires_at),
        available=account.available,
        replayed=replayed,
    )
