"""Accounts: making them, finding them, and joining one to another (docs/rules.md §7)."""

from __future__ import annotations

import json
from datetime import datetime

from sqlalchemy import Connection, bindparam, select, update

from polarcredits.credits import Carry
from polarcredits.errors import InvalidInput, UnknownUser
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import Call, LoadedAccount
from polarcredits.ledger.database import insert_once
from polarcredits.ledger.facts import lock_names, owner_of_customer
from polarcredits.ledger.keeping import load, new_account, save
from polarcredits.ledger.known import KnownFacts
from polarcredits.ledger.reconcile import true_at, write
from polarcredits.lots import Lot
from polarcredits.periods import FOREVER, to_micros
from polarcredits.plans import Catalog
from polarcredits.userids import PLACEHOLDER


def find(connection: Connection, user: str) -> tuple[int, int]:
    """Return the account named *user* and the one that answers for it; UnknownUser if none."""
    if not isinstance(user, str):
        raise InvalidInput(f"The user must be a text, not {user!r}.")
    if "\0" in user:
        raise UnknownUser(user)
    a = t.accounts.c
    query = select(a.id, a.alias_of)
    row = answers = connection.execute(query.where(a.user_id == user)).first()
    if user.startswith(PLACEHOLDER) and (row is None or row.alias_of is not None):
        named = owner_of_customer(connection, user.removeprefix(PLACEHOLDER))
        answers = connection.execute(query.where(a.user_id == named)).first() or row
    if answers is None:
        raise UnknownUser(user)
    return (row or answers).id, answers.alias_of or answers.id


def account_of(connection: Connection, user: str) -> int:
    """Return the account that answers for *user*, or raise UnknownUser."""
    return find(connection, user)[1]


def create(
    connection: Connection,
    catalog: Catalog,
    user: str,
    call: Call,
    *,
    email: str | None = None,
    name: str | None = None,
) -> bool:
    """Make an account with its lifetime grant; False if it is there already (§3.2)."""
    plan = catalog.default
    account = put_account(connection, catalog, user, call, email=email, name=name)
    if account is None:
        return False
    loaded = new_account(account, user, plan.name, call.now)
    if plan.credits:
        loaded.book.lots.append(lifetime(user, plan.name, plan.credits, call.now))
    write(connection, true_at(connection, catalog, loaded, call), call)
    return True


def put_account(
    connection: Connection,
    catalog: Catalog,
    user: str,
    call: Call,
    *,
    email: str | None = None,
    name: str | None = None,
) -> int | None:
    """Insert an account without grants; return its id, None if there is one already."""
    made = insert_once(
        connection,
        t.accounts,
        user_id=user,
        email=email,
        name=name,
        plan=catalog.default.name,
        alias_of=None,
        created_at=to_micros(call.now),
    )
    if not made:
        return None
    account: int = connection.execute(_ACCOUNT, {"user": user}).scalar_one()
    insert_once(connection, t.balances, account_id=account)
    return account


_ACCOUNT = select(t.accounts.c.id).where(t.accounts.c.user_id == bindparam("user"))


def add(
    connection: Connection,
    catalog: Catalog,
    user: str,
    call: Call,
    *,
    email: str | None,
    name: str | None,
) -> bool:
    """Make an account, or update the e-mail and name of the one that is there (False)."""
    if create(connection, catalog, user, call, email=email, name=name):
        return True
    given = {key: value for key, value in (("email", email), ("name", name)) if value}
    if given:
        account = account_of(connection, user)
        connection.execute(update(t.accounts).where(t.accounts.c.id == account).values(given))
    return False


def lifetime(user: str, plan: str, credits: int, now: datetime) -> Lot:
    """Return the default plan's grant, given once with the account (§3.2)."""
    return Lot(
        key=f"lifetime:{user}:{plan}",
        source="lifetime",
        plan=plan,
        gross=credits,
        effective_at=now,
        cause_kind="account",
        cause_id=user,
    )


def link(connection: Connection, catalog: Catalog, placeholder: str, user: str, call: Call) -> None:
    """Make a `polar:` account the user's, by hand (§7.2)."""
    if not placeholder.startswith(PLACEHOLDER) or user.startswith(PLACEHOLDER):
        raise InvalidInput("Only an account polar:<customer id> can be linked to a user.")
    customer = placeholder.removeprefix(PLACEHOLDER)
    lock_names(connection, [customer])
    if find(connection, placeholder)[0] == account_or_none(connection, user):
        raise InvalidInput(f"{placeholder} is {user}'s already.", user=user)
    c = t.customers.c
    a = t.accounts.c
    open_account = select(a.id).where(a.user_id == placeholder, a.alias_of.is_(None))
    if connection.execute(open_account).first() is None:
        raise InvalidInput(f"{placeholder} is linked already.", user=user)
    connection.execute(update(t.customers).where(c.id == customer).values(linked_user=user))
    known = KnownFacts(connection)
    known.give_owners(customer)
    known.save()
    adopt(connection, catalog, placeholder, user, call)


def account_or_none(connection: Connection, user: str) -> int | None:
    """Return the account that bears the user id, if there is one."""
    a = t.accounts.c
    return connection.execute(select(a.id).where(a.user_id == user)).scalar()


def adopt(connection: Connection, catalog: Catalog, placeholder: str, user: str, call: Call) -> None:
    """Let the account *placeholder*, if there is one, become *user*'s with all its history."""
    a = t.accounts.c
    source = connection.execute(select(a.id).where(a.user_id == placeholder, a.alias_of.is_(None))).scalar()
    if source is None or placeholder == user:
        return
    target = account_or_none(connection, user)
    if target is None:
        load(connection, source, lock=True)  # the balance first, as whoever spends does
        _rename(connection, source, placeholder, user)
        settled = true_at(connection, catalog, load(connection, source, lock=True), call)
        write(connection, settled, call)
        return
    first, second = sorted((source, target))
    loaded = {id: load(connection, id, lock=True) for id in (first, second)}
    _merge(connection, loaded[source], loaded[target], call)
    settled = true_at(connection, catalog, loaded[target], call)
    write(connection, settled, call)
    loaded[source].next_due_at = FOREVER
    save(connection, loaded[source], call)
    connection.execute(
        update(t.accounts).where((a.id == source) | (a.alias_of == source)).values(alias_of=target)
    )


def _rename(connection: Connection, account: int, before: str, after: str) -> None:
    a, g = t.accounts.c, t.grants.c
    connection.execute(update(t.accounts).where(a.id == account).values(user_id=after))
    for row in connection.execute(select(g.id, g.key).where(g.account_id == account)).all():
        renamed = _renamed(row.key, before, after)
        if renamed != row.key:
            connection.execute(update(t.grants).where(g.id == row.id).values(key=renamed))


def _renamed(key: str, before: str, after: str) -> str:
    for kind in ("lifetime:", "trial:"):
        if key.startswith(f"{kind}{before}:"):
            return f"{kind}{after}:" + key.removeprefix(f"{kind}{before}:")
    return key


def _merge(connection: Connection, source: LoadedAccount, target: LoadedAccount, call: Call) -> None:
    """Move holds and grants; what was spent of a grant that the user has too is charged to that."""
    save(connection, source, call)
    keys = {lot.key: lot for lot in target.book.lots}
    for lot in list(source.book.lots):
        renamed = _renamed(lot.key, source.user, target.user)
        twin = keys.get(renamed)
        if lot.source == "lifetime" and lot.cause_kind == "account":
            own = [other for other in target.book.lots if other.cause_kind == "account"]
            twin = twin or (own[0] if own else None)
        if twin is None:
            lot.key = renamed
            _move(source, target, lot, lot.remaining, call)
            continue
        due = max(0, min(lot.spent, twin.remaining - twin.held))
        _move_holds(source, lot, twin, twin.remaining - twin.held - due)
        if lot.remaining - lot.held:
            source.post(call, "adjust", lot.held - lot.remaining, lot=lot)
        lot.remaining = lot.held
        lot.gross = lot.clawed = 0
        lot.cause_kind = "account"
        _move(source, target, lot, lot.held, call)
        if due:
            twin.carried_in += due
            target.book.carries.append(Carry(lot, twin, due))
    g, h = t.grants.c, t.holds.c
    connection.execute(update(t.grants).where(g.account_id == source.id).values(account_id=target.id))
    connection.execute(
        update(t.holds).where(h.account_id == source.id, h.status == "open").values(account_id=target.id)
    )
    for hold in source.holds:
        parts = json.dumps([(lot.id, credits) for lot, credits in hold.parts])
        connection.execute(update(t.holds).where(h.id == hold.id).values(parts=parts))
    target.holds += source.holds
    target.held += source.held
    target.book.carries += source.book.carries
    source.holds, source.held, source.book.lots, source.book.carries = [], 0, [], []


def _move_holds(source: LoadedAccount, lot: Lot, twin: Lot, room: int) -> None:
    """Let open holds on *lot* reserve on *twin* instead, as far as there is room."""
    for hold in source.holds:
        parts: list[tuple[Lot, int]] = []
        for held, credits in hold.parts:
            shift = max(0, min(credits, room)) if held is lot else 0
            if shift:
                parts.append((twin, shift))
                twin.held += shift
                lot.held -= shift
                room -= shift
            if credits > shift:
                parts.append((held, credits - shift))
        hold.parts = parts


def _move(source: LoadedAccount, target: LoadedAccount, lot: Lot, credits: int, call: Call) -> None:
    target.book.lots.append(lot)
    if credits:
        source.post(call, "transfer", -credits, lot=lot)
        target.post(call, "transfer", credits, lot=lot)
