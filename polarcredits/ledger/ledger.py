"""The Ledger: check, deduct, grant, reverse and hold credits; one transaction an operation."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Connection

from polarcredits.errors import InvalidInput
from polarcredits.ledger import identity, requests, spending
from polarcredits.ledger.account import Call, Details, LoadedAccount
from polarcredits.ledger.batching import Group, Stuck
from polarcredits.ledger.database import Database
from polarcredits.ledger.failing import failures
from polarcredits.ledger.holds import Hold, Holds
from polarcredits.ledger.hotpath import Spend, Spent
from polarcredits.ledger.keeping import load
from polarcredits.ledger.past import as_it_was
from polarcredits.ledger.reconcile import Settled, refuse_earlier, settle, true_at, write
from polarcredits.ledger.reversal import give_back
from polarcredits.ledger.schema import open_database
from polarcredits.ledger.teller import teller_of
from polarcredits.ledger.values import Balance, Receipt, transaction
from polarcredits.lots import Lot
from polarcredits.periods import to_micros
from polarcredits.plans import Catalog
from polarcredits.userids import check_new_user, check_user_id

T = TypeVar("T")


class Ledger:
    """Credits of all users of one database. Safe to share between threads.

    >>> ledger.deduct("alice", operation="render", idempotency_key="req-1").balance
    """

    def __init__(
        self,
        url: str,
        catalog: Catalog,
        *,
        actor: str = "api",
        database: Database | None = None,
        connection: Connection | None = None,
    ) -> None:
        self.catalog = catalog
        self.database = database or open_database(url)
        self.actor = requests.check_text(actor, "The actor")
        self.joined = connection
        self._url = url
        self._teller = teller_of(self.database)
        self._group = None
        if connection is None:
            self._group = Group(self._teller.spend, stuck=self._teller.stuck, here=self.database.here)

    def close(self) -> None:
        """Close the database; everything acknowledged is on disk already.

        In a signal handler that interrupted the ledger's work in its thread it only refuses what comes
        later, and what has begun goes on; call it again after that to close what is open.
        """
        if self._group is None or self._group.close():
            self._teller.close()
        self.database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def using(self, connection: Connection) -> Ledger:
        """Return this ledger inside the application's own transaction on the same database.

        Never commits; a refusal leaves the connection usable and nothing moved. On SQLite the
        transaction must have begun IMMEDIATE, as `begin` does, else DatabaseBusy is raised: by the
        first write if none has begun, or if somebody else writes.
        """
        return Ledger(
            self._url, self.catalog, actor=self.actor, database=self.database, connection=connection
        )

    @contextmanager
    def rehearse(self) -> Iterator[Ledger]:
        """Give a ledger of which everything is undone at the end; other writers wait meanwhile."""
        with self.database.begin(dry_run=True) as connection:
            yield self.using(connection)

    def begin(self) -> AbstractContextManager[Connection]:
        """Begin a transaction that `using` can join; commits at the end of the block."""
        return self.database.begin()

    def in_transaction(self, work: Callable[[Connection], T], *, dry_run: bool = False) -> T:
        """Run *work* in a write transaction: our own, or a savepoint of the joined one."""
        if self.joined is None:
            return self.database.write(work, dry_run=dry_run)
        self.database.refuse_unbegun(self.joined)
        with failures, self.joined.begin_nested() as savepoint:
            result = work(self.joined)
            if dry_run:
                savepoint.rollback()
            return result

    def reading(self, work: Callable[[Connection], T]) -> T:
        """Run *work* on one snapshot."""
        if self.joined is None:
            return self.database.read(work)
        return work(self.joined)

    def call(self, at: datetime | None = None) -> Call:
        """Return now, or *at*, with who asks."""
        wall = datetime.now(UTC)
        now = requests.check_time(at, "The time") or wall
        return Call(now=now, wall=wall, actor=self.actor, explicit=at is not None)

    def add_user(self, user: str, *, email: str | None = None, name: str | None = None) -> bool:
        """Make an account with its lifetime grant; False, and updated, if it is there already."""
        check_new_user(user)
        requests.check_text(email, "The e-mail address")
        requests.check_text(name, "The name")
        call = self.call()

        def work(connection: Connection) -> bool:
            return identity.add(connection, self.catalog, user, call, email=email, name=name)

        return self.in_transaction(work)

    def link(self, placeholder: str, user: str) -> None:
        """Give an account `polar:<customer id>` to *user* (docs/rules.md §7.2)."""
        check_user_id(user)
        call = self.call()
        self.in_transaction(
            lambda connection: identity.link(connection, self.catalog, placeholder, user, call)
        )

    def balance(self, user: str, *, at: datetime | None = None) -> Balance:
        """Return a user's credits, true at *at* (default now). Raises UnknownUser; writes nothing."""

        def work(connection: Connection) -> Balance:
            account = self.view(connection, user, at).account
            return Balance(
                balance=account.balance,
                held=account.held,
                available=account.available,
                owed=account.book.owed,
            )

        return self.reading(work)

    def view(self, connection: Connection, user: str, at: datetime | None = None) -> Settled:
        """Return the account of *user* in memory: as it is, will be, or, in the past, was at *at*."""
        loaded = load(connection, identity.account_of(connection, user), lock=False)
        call = self.call(at)
        past = to_micros(call.now) < loaded.last_occurred_at or call.now < call.wall
        if at is not None and past:
            return as_it_was(connection, self.catalog, loaded, call.now)
        return true_at(connection, self.catalog, loaded, call)

    def deduct(
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
        """Spend *amount* credits, or `quantity` times the operation's cost.

        Raises InsufficientCredits, UnknownUser, AccountClosed, KeyReused, AlreadyReversed;
        each leaves everything as it was. Source: docs/rules.md §5.
        """
        wanted = spending.request(
            self,
            user,
            amount,
            operation=operation,
            quantity=quantity,
            metadata=metadata,
            idempotency_key=idempotency_key,
            at=at,
        )
        if self._group is None:
            return self.deduct_apart(wanted)
        try:
            spent = self._group.ask(wanted) if spending.groupable(wanted) else None
        except Stuck:
            return self.deduct_apart(wanted)
        return self.deducted(wanted, spent)

    def deduct_apart(self, wanted: Spend) -> Receipt:
        """Deduct in a transaction without others."""
        return self.in_transaction(lambda connection: spending.decide(self, connection, wanted))

    def deducted(self, wanted: Spend, spent: Spent | None) -> Receipt:
        """Return the receipt of what the hot path took; what it missed is decided slowly."""
        if spent is not None:
            return spent.receipt(wanted)
        return self.in_transaction(lambda connection: spending.decide_slowly(self, connection, wanted))

    def grant(
        self,
        user: str,
        amount: int,
        *,
        reason: str | None = None,
        expires_at: datetime | None = None,
        expires_in: timedelta | None = None,
        idempotency_key: str | None = None,
        create: bool = False,
        at: datetime | None = None,
    ) -> Receipt:
        """Give *amount* credits, for good or until a time. Raises UnknownUser unless *create*."""
        requests.check_amount(amount)
        call = self.call(at)
        until = requests.check_expiry(expires_at, expires_in, call.now)
        asked = requests.check_time(expires_at, "The expiry")
        details = Details(
            reason=requests.check_text(reason, "The reason"),
            key=requests.check_key(idempotency_key),
            request=requests.digest(kind="grant", amount=amount, reason=reason, at=asked, within=expires_in)
            if idempotency_key
            else None,
        )
        if create:
            check_new_user(user)

        def work(connection: Connection) -> Receipt:
            if create:
                identity.create(connection, self.catalog, user, call)
            settled, before = self.open_account(connection, user, details, call)
            if before is not None:
                return before
            if settled.account.balance + amount > requests.MOST_BALANCE:
                raise InvalidInput("The balance would be more than the ledger can keep (2^62).")
            if until is not None and until <= settled.now:
                raise InvalidInput("The expiry must be later than now.")
            lot = Lot(
                key=f"manual:{uuid.uuid4().hex}",
                source="manual",
                plan=None,
                gross=amount,
                effective_at=call.now,
                expires_at=until,
            )
            account = settled.account
            account.book.lots.append(lot)
            after = true_at(connection, self.catalog, account, call, details={lot: details})
            row = account.entry_of(lot, "grant")
            write(connection, after, call)
            return self.receipt(row, user, account)

        return self.in_transaction(work)

    def reverse(
        self, transaction_id: str, *, reason: str | None = None, at: datetime | None = None
    ) -> Receipt:
        """Give the whole of a deduction back, once. Raises NotFound, AlreadyReversed, InvalidInput."""
        details = Details(reason=requests.check_text(reason, "The reason"))
        call = self.call(at)

        def work(connection: Connection) -> Receipt:
            row, settled = give_back(connection, self.catalog, transaction_id, details, call)
            write(connection, settled, call)
            return self.receipt(row, settled.account.user, settled.account)

        return self.in_transaction(work)

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
    ) -> Hold:
        """Reserve credits for work of unknown cost; see `Hold`. Raises as `deduct` does."""
        return self.holds.place(
            user,
            amount,
            ttl=ttl,
            operation=operation,
            metadata=metadata,
            key=idempotency_key,
            at=at,
        )

    @property
    def holds(self) -> Holds:
        """Holds by id: capture, release, look up."""
        return Holds(self)

    def open_account(
        self, connection: Connection, user: str, details: Details, call: Call
    ) -> tuple[Settled, Receipt | None]:
        """Lock and settle an account; the receipt is there if the idempotency key was used before."""
        own, account = identity.find(connection, user)
        settled = settle(connection, self.catalog, account, call, lock=True)
        if details.key and details.request:
            row = requests.find_key(connection, (own, settled.account.id), details.key, details.request)
            if row is not None:
                if row.type == "deduct":
                    requests.refuse_if_reversed(connection, row.account_id, row.sequence)
                return settled, self.receipt(row._asdict(), user, settled.account, replayed=True)
        refuse_earlier(settled.account, call)
        return settled, None

    def receipt(
        self, row: Mapping[str, Any], user: str, account: LoadedAccount, *, replayed: bool = False
    ) -> Receipt:
        """Return the receipt of an entry of *account*."""
        entry = transaction(row, user)
        balance = entry.balance_after if replayed else account.balance
        return Receipt(transaction=entry, balance=balance, available=account.available, replayed=replayed)
