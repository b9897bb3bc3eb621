"""Accounts read and written, many at once: a statement a table, whatever the number of accounts.

Reading settles what was spent since the last time (docs/rules.md §5): between two changes of the
grants the spending order is fixed, so it can be done late and comes out the same.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, Connection, Row, bindparam, delete, insert, select, update

from polarcredits.credits import Book, Carry
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import Call, LoadedAccount, OpenHold, micros, moment
from polarcredits.lots import Lot, spread
from polarcredits.periods import from_micros, to_micros

_A, _B, _G, _C, _H = t.accounts.c, t.balances.c, t.grants.c, t.carries.c, t.holds.c
_IDS: BindParameter[list[int]] = bindparam("ids", expanding=True)
_BALANCES = select(t.balances).where(_B.account_id.in_(_IDS)).order_by(_B.account_id)
_LOCKED = _BALANCES.with_for_update()
_ACCOUNTS = select(t.accounts).where(_A.id.in_(_IDS))
_GRANTS = select(t.grants).where(_G.account_id.in_(_IDS)).order_by(_G.id)
_CARRIES = select(t.carries).where(_C.account_id.in_(_IDS))
_HOLDS = select(t.holds).where(_H.account_id.in_(_IDS), _H.status == "open").order_by(_H.id)
_MANY = 500


def load(connection: Connection, account: int, *, lock: bool) -> LoadedAccount:
    """Load and settle an account; with *lock*, nobody else changes it before the commit."""
    return load_all(connection, [account], lock=lock)[account]


def load_all(connection: Connection, accounts: Iterable[int], *, lock: bool) -> dict[int, LoadedAccount]:
    """Load and settle several accounts, locked in the order of their ids."""
    wanted = sorted(set(accounts))
    loaded: dict[int, LoadedAccount] = {}
    for at in range(0, len(wanted), _MANY):
        loaded |= _load_some(connection, wanted[at : at + _MANY], lock)
    return loaded


def _load_some(connection: Connection, ids: Sequence[int], lock: bool) -> dict[int, LoadedAccount]:
    some = {"ids": ids}
    balances = connection.execute(_LOCKED if lock else _BALANCES, some).all()
    owners = {row.id: row for row in connection.execute(_ACCOUNTS, some)}
    lots: dict[int, dict[int, Lot]] = defaultdict(dict)
    for row in connection.execute(_GRANTS, some):
        lots[row.account_id][row.id] = _lot(row)
    carries: dict[int, list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(_CARRIES, some):
        carries[row.account_id].append(row)
    holds: dict[int, list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(_HOLDS, some):
        holds[row.account_id].append(row)
    return {
        row.account_id: _settled(
            row, owners[row.account_id], lots[row.account_id], carries[row.account_id], holds[row.account_id]
        )
        for row in balances
    }


def new_account(id: int, user: str, plan: str, created_at: datetime) -> LoadedAccount:
    """Return an account that was inserted just now and has nothing yet."""
    return LoadedAccount(
        id=id,
        user=user,
        created_at=created_at,
        plan=plan,
        merged_into=None,
        balance=0,
        held=0,
        sequence=0,
        settled_sequence=0,
        next_due_at=0,
        closed=False,
        last_occurred_at=0,
        loaded_at=0,
        book=Book(lots=[]),
        holds=[],
    )


def _settled(
    row: Row[Any],
    owner: Row[Any],
    lots: dict[int, Lot],
    carries: Sequence[Row[Any]],
    holds: Sequence[Row[Any]],
) -> LoadedAccount:
    loaded = LoadedAccount(
        id=row.account_id,
        user=owner.user_id,
        created_at=from_micros(owner.created_at),
        plan=owner.plan,
        merged_into=owner.alias_of,
        balance=row.balance,
        held=row.held,
        sequence=row.sequence,
        settled_sequence=row.settled_sequence,
        next_due_at=row.next_due_at,
        closed=bool(row.closed),
        last_occurred_at=row.last_occurred_at,
        loaded_at=row.last_occurred_at,
        book=Book(
            lots=list(lots.values()),
            carries=[Carry(lots[c.source_id], lots[c.target_id], c.amount, bool(c.debt)) for c in carries],
        ),
        holds=[
            OpenHold(
                hold.id,
                hold.amount,
                from_micros(hold.expires_at),
                [(lots[grant], credits) for grant, credits in json.loads(hold.parts)],
            )
            for hold in holds
        ],
        stored={id: _changing(lot) for id, lot in lots.items()},
        has_carries=bool(carries),
    )
    if row.unsettled:
        live = [lot for lot in loaded.book.lots if not lot.expired]
        spent = spread(live, row.unsettled, row.balance + row.unsettled)
        loaded.record_draws(spent, row.settled_sequence + 1, row.sequence)
    return loaded


def _lot(row: Row[Any]) -> Lot:
    return Lot(
        id=row.id,
        key=row.key,
        source=row.source,
        plan=row.plan,
        gross=row.gross,
        clawed=row.clawed,
        used=row.used,
        carried_in=row.carried_in,
        remaining=row.remaining,
        held=row.held,
        effective_at=from_micros(row.effective_at),
        expires_at=moment(row.expires_at),
        expired=bool(row.expired),
        withdrawn=bool(row.withdrawn),
        clawback=row.clawback,
        cause_kind=row.cause_kind,
        cause_id=row.cause_id,
        period_start=moment(row.period_start),
        period_end=moment(row.period_end),
    )


def _changing(lot: Lot) -> dict[str, Any]:
    """Return the columns of a grant that can change."""
    return {
        "key": lot.key,
        "plan": lot.plan,
        "gross": lot.gross,
        "clawed": lot.clawed,
        "used": lot.used,
        "carried_in": lot.carried_in,
        "remaining": lot.remaining,
        "held": lot.held,
        "expires_at": micros(lot.expires_at),
        "expired": int(lot.expired),
        "withdrawn": int(lot.withdrawn),
        "period_end": micros(lot.period_end),
    }


_CHANGE_GRANT = update(t.grants).where(_G.id == bindparam("grant"))
_CHANGE_BALANCE = update(t.balances).where(_B.account_id == bindparam("account"))
_NEW_GRANT = insert(t.grants).returning(_G.id, sort_by_parameter_order=True)


def save(connection: Connection, account: LoadedAccount, call: Call) -> None:
    """Write everything that changed; new grants are caused by the event of *call*."""
    account.settled_by(call)
    save_all(connection, [account])


def save_all(connection: Connection, accounts: Sequence[LoadedAccount]) -> None:
    """Write everything that changed in some accounts."""
    _save_grants(connection, accounts)
    draws = [row for account in accounts for row in _draws(account)]
    if draws:
        connection.execute(insert(t.draws), draws)
    entries = []
    for account in accounts:
        for row, lot in account.unsaved_entries:
            row["grant_id"] = lot.id if lot else None
            entries.append(row)
    if entries:
        connection.execute(insert(t.transactions), entries)
    _save_carries(connection, accounts)
    if accounts:
        connection.execute(_CHANGE_BALANCE, [_balance(account) for account in accounts])
    for account in accounts:
        account.unsaved_draws.clear()
        account.unsaved_entries.clear()


def _save_grants(connection: Connection, accounts: Sequence[LoadedAccount]) -> None:
    new: list[tuple[LoadedAccount, Lot]] = []
    changed: list[dict[str, Any]] = []
    for account in accounts:
        for lot in account.book.lots:
            if lot.id in account.unsaved_lots:
                new.append((account, lot))
            elif lot.id is not None and (changing := _changing(lot)) != account.stored.get(lot.id):
                changed.append({**changing, "grant": lot.id})
                account.stored[lot.id] = changing
    if new:
        rows = [_whole(account, lot) for account, lot in new]
        for (account, lot), id in zip(new, connection.execute(_NEW_GRANT, rows).scalars(), strict=True):
            lot.id = id
            account.stored[id] = _changing(lot)
        for account, _ in new:
            account.unsaved_lots.clear()
    if changed:
        connection.execute(_CHANGE_GRANT, changed)


def _whole(account: LoadedAccount, lot: Lot) -> dict[str, Any]:
    return {
        "account_id": account.id,
        "source": lot.source,
        "effective_at": to_micros(lot.effective_at),
        "clawback": lot.clawback,
        "cause_kind": lot.cause_kind,
        "cause_id": lot.cause_id,
        "cause_event": account.unsaved_lots[lot.id or 0],
        "period_start": micros(lot.period_start),
        **_changing(lot),
    }


def _draws(account: LoadedAccount) -> list[dict[str, Any]]:
    drawn: dict[int, int] = {}
    rows = []
    for first, last, draw in account.unsaved_draws:
        drawn[first] = drawn.get(first, -1) + 1
        rows.append(
            {
                "account_id": account.id,
                "first_sequence": first,
                "last_sequence": last,
                "position": drawn[first],
                "grant_id": draw.lot.id,
                "credits": draw.credits,
                "balance_from": draw.balance_from,
                "balance_to": draw.balance_to,
            }
        )
    return rows


def _save_carries(connection: Connection, accounts: Sequence[LoadedAccount]) -> None:
    before = [account.id for account in accounts if account.has_carries]
    if before:
        connection.execute(delete(t.carries).where(_C.account_id.in_(before)))
    rows = [
        {
            "account_id": account.id,
            "source_id": carry.source.id,
            "target_id": carry.target.id,
            "debt": int(carry.debt),
            "amount": carry.amount,
        }
        for account in accounts
        for carry in account.book.carries
    ]
    if rows:
        connection.execute(insert(t.carries), rows)
    for account in accounts:
        account.has_carries = bool(account.book.carries)


def _balance(account: LoadedAccount) -> dict[str, Any]:
    return {
        "account": account.id,
        "balance": account.balance,
        "held": account.held,
        "sequence": account.sequence,
        "unsettled": 0,
        "settled_sequence": account.sequence,
        "next_due_at": account.next_due_at,
        "closed": int(account.closed),
        "last_occurred_at": account.last_occurred_at,
    }
