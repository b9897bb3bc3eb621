"""Take facts in, a batch at once: learn them in order, find whose they are, reconcile those accounts.

Everything that a batch can touch is read together and written together; in between, each event is
taken in memory exactly as it would be alone, so that the ledger tells the same story however the
events were cut into batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, select

from polarcredits.entitlements import AccountFacts, undated
from polarcredits.errors import ConfigError
from polarcredits.facts import Fact
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import Call, LoadedAccount
from polarcredits.ledger.crowd import Crowd
from polarcredits.ledger.database import insert_once
from polarcredits.ledger.facts import Observation, concerned, customers_of, lock_names, observe
from polarcredits.ledger.identity import adopt
from polarcredits.ledger.known import KnownFacts
from polarcredits.ledger.reconcile import Heard, Settled, known_terms, true_by, write_all
from polarcredits.periods import to_micros
from polarcredits.plans import Catalog
from polarcredits.terms import Terms
from polarcredits.userids import PLACEHOLDER


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What one event says: its facts, the call that brings them, and when they count."""

    told: Sequence[Observation]
    call: Call
    as_of: datetime


def apply_facts(
    connection: Connection, catalog: Catalog, facts: Sequence[Fact], call: Call, news: datetime
) -> list[str]:
    """Record *facts* and reconcile whom they touch; return those users, that of the first customer first."""
    told = [observe(fact) for fact in facts]
    return apply_all(connection, catalog, [News(told=told, call=call, as_of=news)])[0]


def apply_all(connection: Connection, catalog: Catalog, batch: Sequence[News]) -> list[list[str]]:
    """Record the facts of a batch, in order, and reconcile whom they touch; return whom each touched."""
    if not batch:
        return []
    intake = _Intake(connection, catalog, batch)
    touched = [intake.take(news) for news in batch]
    intake.save()
    return touched


class _Intake:
    """One batch: facts and accounts in memory."""

    def __init__(self, connection: Connection, catalog: Catalog, batch: Sequence[News]) -> None:
        self._connection = connection
        self._catalog = catalog
        self._call = batch[0].call
        told = [each for news in batch for each in news.told]
        customers = customers_of(connection, [each.fact for each in told])
        lock_names(connection, customers)
        self._known = KnownFacts(connection)
        users = self._known.look_up(told, customers)
        self._crowd = Crowd(connection, catalog)
        self._crowd.look_up(users)
        self._known.look_up_users(told, users)
        self._termed = users
        self._terms = known_terms(connection, [self._known.of(user) for user in sorted(users)])
        self._bases: dict[int, tuple[AccountFacts, bool, datetime]] = {}
        self._settled: dict[int, Settled] = {}

    def take(self, news: News) -> list[str]:
        """Learn what one event says and settle whom it touches; return those users."""
        customers = concerned([each.fact for each in news.told], self._known.customer_of)
        fresh = [each for each in news.told if not self._known.knows(each)]
        if fresh:
            self._catch_up(customers, news.call)
        for each in news.told:
            self._known.learn(each)
        touched: dict[str, None] = {}
        for customer in sorted(customers):
            user, users = self._known.give_owners(customer)
            self._adopt(PLACEHOLDER + customer, user, news.call)
            touched |= dict.fromkeys((user, *sorted(users)))
        since = replace(news.call, now=min(news.call.now, news.as_of))
        accounts = {self._account(user, since) for user in sorted(touched)}
        if fresh:
            for account in sorted(accounts, key=lambda each: each.id):
                self._settle(account, news.call, news.as_of)
        return list(touched)

    def save(self) -> None:
        """Write all that was learned and all that came of it."""
        self._known.save()
        write_all(self._connection, list(self._settled.values()), self._call)
        self._bases.clear()
        self._settled.clear()

    def _catch_up(self, customers: set[str], call: Call) -> None:
        """Settle what fell due before the news, by the facts as they then stood."""
        now = to_micros(call.now)
        found = [self._crowd.own(self._known.owner_of(customer)) for customer in sorted(customers)]
        due = {account for account in found if account is not None and account.next_due_at <= now}
        for account in sorted(due, key=lambda each: each.id):
            self._settle(account, call, None)

    def _account(self, user: str, call: Call) -> LoadedAccount:
        """Return the account that answers for *user*, made if there is none."""
        account = self._crowd.find(user)
        if account is None and user.startswith(PLACEHOLDER):
            account = self._crowd.find(self._known.owner_of(user.removeprefix(PLACEHOLDER)))
        if account is not None:
            return account
        account = self._crowd.make(user, call)
        if account is None:
            self._known.look_again(user)
            return self._account(user, call)
        self._settle(account, call, None)
        return account

    def _adopt(self, placeholder: str, user: str, call: Call) -> None:
        """Let a customer's own account become its user's: that moves accounts, so all is written first."""
        if placeholder != user and self._crowd.own(placeholder) is not None:
            self.save()
            adopt(self._connection, self._catalog, placeholder, user, call)
            self._crowd.forget()

    def _settle(self, account: LoadedAccount, call: Call, news: datetime | None) -> None:
        """Reconcile an account in memory, unless it is settled by the same facts already."""
        heard = Heard(
            facts=self._known.of(account.user),
            terms=self._terms_of(account.user),
            closed=self._known.is_closed(account.user),
        )
        basis = (undated(heard.facts), heard.closed, call.now)
        if self._bases.get(account.id) == basis:
            return
        settled = true_by(heard, self._catalog, account, call, news=news)
        account.settled_by(call)
        self._terms.update(settled.entitled.new_terms)
        earlier = self._settled.get(account.id)
        if earlier is not None:
            settled.entitled.new_terms |= earlier.entitled.new_terms
            settled.entitled.unknown_products |= earlier.entitled.unknown_products
        self._bases[account.id], self._settled[account.id] = basis, settled

    def _terms_of(self, user: str) -> dict[tuple[str, str], Terms]:
        if user not in self._termed:
            self._termed.add(user)
            self._terms |= known_terms(self._connection, [self._known.of(user)])
        return self._terms


def stamp(connection: Connection, environment: str) -> None:
    """Mark the database with its Polar environment; raise ConfigError if it has another (§ Configuration)."""
    if not check_stamp(connection, environment):
        insert_once(connection, t.settings, name="polar_environment", value=environment)
        check_stamp(connection, environment)


def check_stamp(connection: Connection, environment: str) -> bool:
    """Say whether the database is marked; raise ConfigError if it is with another Polar environment."""
    known = connection.execute(_STAMP).scalar()
    if known not in (None, environment):
        raise ConfigError(
            f"POLAR_ENVIRONMENT is {environment}, but this database holds events of {known}. "
            "Use another database (POLARCREDITS_DATABASE_URL) or the right environment.",
            setting="POLAR_ENVIRONMENT",
        )
    return known is not None


_STAMP = select(t.settings.c.value).where(t.settings.c.name == "polar_environment")
