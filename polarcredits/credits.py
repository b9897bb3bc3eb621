"""The arithmetic of grants: what is to be posted, expired, taken back and carried (docs/rules.md §§2, 4).

Pure: lots and carries go in, postings come out, nothing is read or written. `advance` is driven by
what a grant *should* hold, so running it twice, or late, posts nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from polarcredits.lots import EntryType, Lot, spending_order
from polarcredits.terms import Desired

_CHARGEABLE = ("allowance", "pack")


@dataclass(slots=True, eq=False)
class Carry:
    """Credits used on `source` beyond its worth, counted as used on `target`."""

    source: Lot
    target: Lot
    amount: int
    debt: bool = False


@dataclass(slots=True)
class Posting:
    """An entry that the ledger is to write."""

    type: EntryType
    amount: int
    lot: Lot
    occurred_at: datetime


class Loss(NamedTuple):
    """What a grant lost of its worth: to refunds, and to a change of what is sold."""

    refunded: int
    cut: int


@dataclass(slots=True, kw_only=True)
class Book:
    """One account's lots and carries, with the postings made since it was opened."""

    lots: list[Lot]
    carries: list[Carry] = field(default_factory=list)
    postings: list[Posting] = field(default_factory=list)

    def live(self, now: datetime) -> list[Lot]:
        """Return grants with credits left, in spending order."""
        left = [lot for lot in self.lots if lot.remaining > 0 and not lot.lapsed(now)]
        return sorted(left, key=spending_order)

    def outstanding(self, lot: Lot, *, debt: bool) -> int:
        """Return what *lot* still owes after what was carried to later grants."""
        carried = sum(c.amount for c in self.carries if c.source is lot and c.debt == debt)
        return (lot.debt if debt else lot.owed) - carried

    @property
    def owed(self) -> int:
        """Credits that the user's next allowance or pack will start with as used."""
        return sum(max(0, self.outstanding(lot, debt=False)) for lot in self.lots)


def advance(book: Book, desired: Sequence[Desired], now: datetime, as_of: datetime) -> list[Posting]:
    """Bring *book* to what *desired* asks for at *now*; return what had to be posted, in order.

    `as_of` is when the news counts that changes an existing grant (docs/rules.md §2).
    """
    before = len(book.postings)
    withdrawn = [lot for lot in book.lots if lot.withdrawn]
    was = {id(lot): (lot.gross, lot.clawed) for lot in book.lots}
    _update(book, desired)
    restored = [lot for lot in withdrawn if not lot.withdrawn]
    fresh = _create(book, desired)
    for lot in sorted(book.lots, key=lambda lot: (lot.effective_at, lot.source != "rollover")):
        if lot.rollover is not None:
            lot.gross = _carried_over(book, lot, now)
    for _ in range(len(book.lots) + 1):
        if not _give_back(book):
            break
    for lot in sorted([*fresh, *restored], key=lambda lot: (lot.effective_at, lot.key)):
        _charge(book, lot)
    for lot in book.lots:
        if lot.continues and lot.source == "allowance":
            _continue(book, lot)
    losses = _losses(book, was)
    for lot in book.lots:
        _post(book, lot, lot in fresh, losses[id(lot)], now, as_of)
    book.lots = [lot for lot in book.lots if lot.id is not None or lot.gross or lot.spent]
    posted = book.postings[before:]
    rank = {"grant": 0}
    posted.sort(key=lambda p: (p.occurred_at, rank.get(p.type, 1), p.lot.effective_at))
    book.postings[before:] = posted
    return posted


def _update(book: Book, desired: Sequence[Desired]) -> None:
    """Set worth and expiry of the grants that exist."""
    wanted = {grant.key: grant for grant in desired}
    for lot in book.lots:
        if lot.source == "manual" or lot.cause_kind == "account":
            continue
        grant = wanted.get(lot.key)
        if grant is None:
            lot.withdrawn = True
            continue
        lot.withdrawn = False
        lot.plan = grant.plan
        lot.clawed = grant.clawed
        lot.expires_at = grant.expires_at
        lot.continues = grant.continues
        lot.rollover = grant.rollover
        lot.period_end = grant.period_end
        if grant.rollover is None:
            lot.gross = grant.gross


def _create(book: Book, desired: Sequence[Desired]) -> list[Lot]:
    known = {lot.key for lot in book.lots}
    fresh = [lot for lot in book.lots if lot.id is None and not lot.remaining]
    for grant in desired:
        if grant.key in known or (grant.gross <= 0 and grant.rollover is None):
            continue
        lot = Lot(
            key=grant.key,
            source=grant.source,
            plan=grant.plan,
            gross=grant.gross,
            clawed=grant.clawed,
            effective_at=grant.effective_at,
            expires_at=grant.expires_at,
            clawback=grant.clawback,
            continues=grant.continues,
            rollover=grant.rollover,
            cause_kind=grant.cause_kind,
            cause_id=grant.cause_id,
            period_start=grant.period_start,
            period_end=grant.period_end,
        )
        book.lots.append(lot)
        fresh.append(lot)
    return fresh


def _carried_over(book: Book, lot: Lot, now: datetime) -> int:
    """Return what a rollover grant is worth: the rest of its sources, up to the cap (§4.4)."""
    if lot.rollover is None:
        return lot.gross
    rest = sum(
        max(0, source.worth - source.spent - source.held)
        for source in book.lots
        if source.key in lot.rollover.sources and source.lapsed(now) and not source.withdrawn
    )
    return rest if lot.rollover.cap is None else min(rest, lot.rollover.cap)


def _give_back(book: Book) -> bool:
    """Return carries that are no longer owed, or not by this grant; say whether anything moved."""
    moved = False
    for carry in reversed(book.carries):
        excess = min(carry.amount, -book.outstanding(carry.source, debt=carry.debt))
        excess = carry.amount if carry.target.withdrawn else excess
        if excess > 0:
            _move(carry, -excess)
            moved = True
    book.carries = [carry for carry in book.carries if carry.amount]
    return moved


def _charge(book: Book, lot: Lot) -> None:
    """Let a newly posted grant start with what earlier ones owe, as far as it reaches (§2, owed)."""
    for debtor in sorted(book.lots, key=lambda other: (other.effective_at, other.key)):
        if debtor is lot:
            continue
        for debt in (False, True):
            if not debt and lot.source not in _CHARGEABLE:
                continue
            due = min(book.outstanding(debtor, debt=debt), lot.worth - lot.spent)
            if due > 0:
                _move_new(book, debtor, lot, due, debt=debt)


def _continue(book: Book, lot: Lot) -> None:
    """Charge a continuing grant with what the grant that it cuts off used too much (§4.5)."""
    before = [
        other
        for other in book.lots
        if other.source == "allowance"
        and other.cause_id == lot.cause_id
        and other.effective_at < lot.effective_at
    ]
    if before:
        cut_off = max(before, key=lambda other: other.effective_at)
        due = book.outstanding(cut_off, debt=False)
        if due > 0:
            _move_new(book, cut_off, lot, due, debt=False)


def _move_new(book: Book, source: Lot, target: Lot, amount: int, *, debt: bool) -> None:
    for carry in book.carries:
        if carry.source is source and carry.target is target and carry.debt == debt:
            break
    else:
        carry = Carry(source, target, 0, debt)
        book.carries.append(carry)
    _move(carry, amount)


def _move(carry: Carry, amount: int) -> None:
    carry.amount += amount
    carry.target.carried_in += amount
    if carry.debt:
        carry.source.remaining += amount
        carry.target.remaining -= amount


def _losses(book: Book, was: Mapping[int, tuple[int, int]]) -> dict[int, Loss]:
    """Return what each grant lost of its worth, *was* being its gross and what refunds had taken of it."""
    losses: dict[int, Loss] = {}
    for lot in sorted(book.lots, key=lambda lot: lot.effective_at):
        gross, clawed = was.get(id(lot), (lot.gross, lot.clawed))
        loss = Loss(refunded=max(0, lot.clawed - clawed), cut=max(0, gross - lot.gross))
        if lot.rollover is not None:
            sources = [other for other in book.lots if other.key in lot.rollover.sources]
            if any(id(source) in losses and losses[id(source)].refunded for source in sources):
                loss = Loss(refunded=loss.cut, cut=0)
        losses[id(lot)] = loss
    return losses


def _post(book: Book, lot: Lot, fresh: bool, loss: Loss, now: datetime, as_of: datetime) -> None:
    """Post the difference between what *lot* holds and what it should hold."""
    debt = max(0, book.outstanding(lot, debt=True))
    whole = 0 if lot.withdrawn else max(0, lot.worth - lot.spent)
    over = lot.lapsed(now)

    def post(kind: EntryType, amount: int, at: datetime) -> None:
        if amount:
            lot.remaining += amount
            book.postings.append(Posting(kind, amount, lot, at))

    end = lot.expires_at or now
    if fresh:
        start = max(0, lot.gross - lot.spent) - lot.remaining
        post("grant", start, lot.effective_at)
        post("clawback", max(whole, 0) - lot.remaining, as_of)
        if over:
            post("expire", -lot.remaining, end)
    elif over and lot.expired:
        target = lot.held - debt
        down = target - lot.remaining
        claw = min(-down, loss.refunded) if down < 0 and lot.clawback == "debt" else 0
        post("clawback", -claw, max(end, as_of))
        post("expire" if down < 0 else "adjust", down + claw, max(end, as_of))
    else:
        target = max(lot.held, whole) - debt
        delta = target - lot.remaining
        if over and not lot.expired and delta > 0 and not lot.held:
            delta = 0
        if delta < 0:
            claw = min(-delta, loss.refunded)
            if not loss.refunded and lot.clawed > 0 and not lot.withdrawn:
                claw = max(0, -delta - loss.cut)  # what a refund took and a hold kept till now
            post("clawback", -claw, as_of)
            post("adjust", delta + claw, as_of)
        else:
            post("adjust", delta, as_of)
        if over:
            post("expire", lot.held - debt - lot.remaining, end)
    lot.expired = over
