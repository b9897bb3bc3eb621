"""The Ledger: check, deduct, grant, reverse and hold credits; one transaction an operation."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Connection

from polarcredits.errors import AccountClosed, InsufficientCredits, InvalidInput
from polarcredits.ledger import identity, requests
from polarcredits.ledger.account import Call, Details, LoadedAccount, load
from polarcredits.ledger.database import Database, failures
from polarcredits.ledger.holds import Hold, Holds
from polarcredits.ledger.hotpath import KeyTaken, Spend, spend
from polarcredits.ledger.past import as_it_was
from polarcredits.ledger.reconcile import Settled, refuse_earlier, settle, true_at, write
from polarcredits.ledger.reversal import give_back
from polarcredits.ledger.schema import open_database
from polarcredits.ledger.values import Balance, Receipt, transaction
from polarcredits.lots import Lot, spread
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
        self.actor = actor
        self.joined = connection
        self._url = url

    def close(self) -> None:
        """Close the database; everything acknowledged is on disk already."""
        self.database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def using(self, connection: Connection) -> Ledger:
        """Return this ledger inside the application's own transaction on the same database.

        Never commits; a refusal leaves the connection usable and nothing moved. On SQLite the
        transaction must have begun IMMEDIATE, as `begin` does, else DatabaseBusy may be raised.
        """
        return Ledger(
            self._url, self.catalog, actor=self.actor, database=self.database, connection=connection
        )

    @contextmanager
    def rehearse(self) -> Iterator[Ledger]:
        """Give a ledger of which everything is undone at the end; other writers wait meanwhile."""
        with failures(), self.database.writer.connect() as connection:
            transaction = connection.begin()
            try:
                yield self.using(connection)
            finally:
                transaction.rollback()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Begin a transaction that `using` can join; commits at the end of the block."""
        with failures(), self.database.writer.begin() as connection:
            yield connection

    def in_transaction(self, work: Callable[[Connection], T], *, dry_run: bool = False) -> T:
        """Run *work* in a write transaction: our own, or a savepoint of the joined one."""
        if self.joined is None:
            return self.database.write(work, dry_run=dry_run)
        with failures(), self.joined.begin_nested() as savepoint:
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
        requests.check_amount(quantity, "The quantity")
        given = None if amount is None else requests.check_amount(amount)
        cost = self.catalog.cost(operation) * quantity if given is None else given
        call = self.call(at)
        meta = requests.check_metadata(metadata)
        details = Details(
            operation=requests.check_text(operation, "The operation"),
            meta=meta,
            key=requests.check_text(idempotency_key, "The idempotency key"),
            request=requests.digest(
                kind="deduct", operation=operation, quantity=quantity, amount=given, meta=meta
            )
            if idempotency_key
            else None,
        )
        if at is None and 0 < cost <= requests.MOST_CREDITS:
            receipt = self._fast(user, cost, details, call)
            if receipt is not None:
                return receipt
        return self.in_transaction(lambda connection: self._slow(connection, user, cost, details, call))

    def _fast(self, user: str, cost: int, details: Details, call: Call) -> Receipt | None:
        wanted = Spend(
            user=user,
            amount=cost,
            operation=details.operation,
            meta=details.meta,
            actor=call.actor,
            key=details.key,
            request=details.request,
            now=to_micros(call.now),
            recorded=to_micros(call.wall),
        )
        try:
            spent = self.in_transaction(lambda connection: spend(connection, wanted))
        except KeyTaken:
            return None
        if spent is None:
            return None
        return Receipt(
            transaction=transaction(spent.entry(wanted), user),
            balance=spent.balance,
            available=spent.balance - spent.held,
        )

    def _slow(self, connection: Connection, user: str, cost: int, details: Details, call: Call) -> Receipt:
        settled, before = self._open(connection, user, details, call)
        account = settled.account
        if before is not None:
            return before
        if cost == 0:
            raise InvalidInput(f"Operation {details.operation!r} costs nothing; there is nothing to deduct.")
        requests.check_amount(cost, "The cost")
        if account.closed:
            raise AccountClosed(user)
        if account.available < cost:
            raise InsufficientCredits(user, required=cost, available=account.available)
        row = account.post(call, "deduct", -cost, details=details)
        draws = spread(account.book.lots, cost, account.balance + cost)
        account.record_draws(draws, account.sequence, account.sequence)
        write(connection, settled, call)
        return self._receipt(row, user, account)

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
        details = Details(
            reason=requests.check_text(reason, "The reason"),
            key=requests.check_text(idempotency_key, "The idempotency key"),
            request=requests.digest(
                kind="grant", amount=amount, reason=reason, at=expires_at, within=expires_in
            )
            if idempotency_key
            else None,
        )
        if create:
            check_new_user(user)

        def work(connection: Connection) -> Receipt:
            if create:
                identity.create(connection, self.catalog, user, call)
            settled, before = self._open(connection, user, details, call)
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
            return self._receipt(row, user, account)

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
            return self._receipt(row, settled.account.user, settled.account)

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

    def _open(
        self, connection: Connection, user: str, details: Details, call: Call
    ) -> tuple[Settled, Receipt | None]:
        """Lock and settle an account; the receipt is there if the idempotency key was used before."""
        own, account = identity.find(connection, user)
        settled = settle(connection, self.catalog, account, call, lock=True)
        if details.key and details.request:
            row = requests.find_key(connection, (own, account), details.key, details.request)
            if row is not None:
                if row.type == "deduct":
                    requests.refuse_if_reversed(connection, row.account_id, row.sequence)
                return settled, self._receipt(row._asdict(), user, settled.account, replayed=True)
        refuse_earlier(settled.account, call)
        return settled, None

    def _receipt(
        self, row: Mapping[str, Any], user: str, account: LoadedAccount, *, replayed: bool = False
    ) -> Receipt:
        entry = transaction(row, user)
        balance = entry.balance_after if replayed else account.balance
        return Receipt(transaction=entry, balance=balance, available=account.available, replayed=replayed)
