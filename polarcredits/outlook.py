"""What will befall an account if nothing new is heard, foreseen when it is written (docs/rules.md §4).

Almost everybody who is due needs the same two entries: the old allowance expires, the next begins.
Reading all facts again to find that out is what makes a refill slow. So whoever writes an account
also writes down its outlook, and `step` takes what is due from that. An outlook is either exactly
what reconcile would do or there is none; `step` leaves to reconcile whatever it cannot take.

Pure: nothing is read or written. Times are microseconds since 1970.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import NamedTuple

from polarcredits.credits import Book
from polarcredits.entitlements import AccountFacts, Entitlements
from polarcredits.lots import SOURCE_ORDER, Lot
from polarcredits.periods import FOREVER, to_micros
from polarcredits.terms import Desired

LONGEST_RUN = 32
"""The most allowances that one outlook foresees; reconcile foresees the next ones then."""


class Run(NamedTuple):
    """Allowances of one billing period that follow each other and differ in nothing but their time."""

    bounds: Sequence[int]
    """Where each begins, then where the last one ends."""
    prefix: str
    """Their natural keys without the index."""
    first_index: int
    expires_at: int
    """When the last one expires; each other expires where the next begins."""
    plan: str
    credits: int
    clawback: str
    subscription_id: str


class Outlook(NamedTuple):
    """What befalls an account before `until`: grants expire, and those of `run` begin."""

    until: int
    product_id: str | None
    """The product whose plan shows until then; None for the default plan."""
    run: Run | None


def foresee(book: Book, facts: AccountFacts, entitled: Entitlements, now: datetime) -> Outlook | None:
    """Return the outlook of an account that reconcile has made true at *now*; None if it is not plain.

    Plain: nothing held, owed, carried or rolled over, terms written down, at most one live
    subscription. Then what is desired depends on the time only by what has begun (`entitlements`),
    and spending changes only what is left of each grant (`credits.advance`).
    """
    live = [subscription.latest for subscription in facts.subscriptions if subscription.live(now)]
    known = {lot.key for lot in book.lots}
    if (
        not entitled.frozen
        or len(live) > 1
        or book.carries
        or not all(_plain(lot, now) for lot in book.lots)
        or any(grant.rollover for grant in (*entitled.desired, *entitled.upcoming))
        or any(_would_expire_unseen(grant, known, now) for grant in entitled.desired)
    ):
        return None
    run = _run(entitled.upcoming, known)
    turns = [entitled.turns_at] if entitled.turns_at else []
    turns += [grant.effective_at for grant in entitled.upcoming[len(run) : len(run) + 1]]
    return Outlook(
        until=min(map(to_micros, turns), default=FOREVER),
        product_id=live[0].product_id if live else None,
        run=_described(run) if run else None,
    )


def _plain(lot: Lot, now: datetime) -> bool:
    """Say whether nothing but spending and its expiry can change a grant without news."""
    left = 0 if lot.withdrawn or lot.expired else max(0, lot.worth - lot.spent)
    settled = lot.expired == lot.lapsed(now) and lot.remaining == left
    return settled and not (lot.held or lot.owed or lot.debt)


def _would_expire_unseen(grant: Desired, known: set[str], now: datetime) -> bool:
    """Say whether a grant of nothing, which the ledger does not hold, has an end still to come."""
    return grant.key not in known and grant.expires_at is not None and grant.expires_at > now


def _run(upcoming: Sequence[Desired], known: set[str]) -> list[Desired]:
    """Return the first of *upcoming*, as far as they are one regular run."""
    run: list[Desired] = []
    for grant in upcoming[:LONGEST_RUN]:
        if not _regular(grant) or grant.key in known or (run and not _follows(grant, run[-1])):
            break
        run.append(grant)
    return run


def _regular(grant: Desired) -> bool:
    return (
        grant.source == "allowance"
        and grant.gross > 0
        and not grant.clawed
        and grant.period_start == grant.effective_at
        and grant.expires_at is not None
        and grant.period_end is not None
    )


def _follows(grant: Desired, before: Desired) -> bool:
    """Say whether *grant* begins where *before* ends and is otherwise the same."""
    prefix, index = _split(before)
    return (
        grant.key == f"{prefix}{index + 1}"
        and before.expires_at == before.period_end == grant.effective_at
        and (grant.plan, grant.gross, grant.clawback) == (before.plan, before.gross, before.clawback)
    )


def _split(grant: Desired) -> tuple[str, int]:
    """Return an allowance's key without its index, and the index."""
    prefix, _, index = grant.key.rpartition(":")
    return f"{prefix}:", int(index)


def _described(run: Sequence[Desired]) -> Run:
    first, last = run[0], run[-1]
    prefix, index = _split(first)
    ends = last.period_end or last.effective_at
    return Run(
        prefix=prefix,
        first_index=index,
        bounds=(*(to_micros(grant.effective_at) for grant in run), to_micros(ends)),
        expires_at=to_micros(last.expires_at or ends),
        plan=first.plan or "",
        credits=first.gross,
        clawback=first.clawback,
        subscription_id=first.cause_id,
    )


class Standing(NamedTuple):
    """What an account's balance row says."""

    account: int
    balance: int
    sequence: int
    unsettled: int
    settled_sequence: int
    next_due_at: int
    last_occurred_at: int


class Stake(NamedTuple):
    """A grant that has not expired, as far as a step needs it."""

    id: int
    source: str
    key: str
    used: int
    remaining: int
    effective_at: int
    expires_at: int | None
    account: int


class Entry(NamedTuple):
    """An entry of the ledger. `grant` is an id, or ~n for the n-th of `Steps.begun`."""

    account: int
    sequence: int
    type: str
    amount: int
    balance_after: int
    grant: int
    occurred_at: int


class Begun(NamedTuple):
    """A grant that has begun."""

    account: int
    run: Run
    number: int
    remaining: int
    effective_at: int
    expires_at: int
    expired: int
    period_end: int


class Draw(NamedTuple):
    """What a grant paid of the spending since the account was last settled."""

    account: int
    first_sequence: int
    position: int
    last_sequence: int
    grant: int
    credits: int
    balance_from: int
    balance_to: int


class Changed(NamedTuple):
    """A grant that was drawn on or has expired."""

    id: int
    used: int
    remaining: int
    expired: int


@dataclass(slots=True)
class Steps:
    """What is to be written for many accounts, and the sums of it."""

    entries: list[Entry] = field(default_factory=list)
    begun: list[Begun] = field(default_factory=list)
    changed: list[Changed] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    standings: list[Standing] = field(default_factory=list)
    expired: int = 0
    credits_granted: int = 0
    credits_expired: int = 0


_posting_order = itemgetter(0, 1, 2)


def step(standing: Standing, outlook: Outlook, stakes: Sequence[Stake], now: int, steps: Steps) -> bool:
    """Add to *steps* what makes an account true at *now*; False, and nothing added, if it is not plain.

    *stakes* are all its grants that have not expired, by id. Everything from `next_due_at` on is
    still to be done and everything before it is done, so an outlook stays true when it was followed,
    and nothing is dated before an entry that is there: those are older than `next_due_at`.
    """
    account, balance, sequence, unsettled, settled, due, last = standing
    if now >= outlook.until:
        return False
    drawn = _drawn(stakes, unsettled) if unsettled else {}
    if drawn is None:
        return False
    position, before = 0, balance + unsettled
    for id, credits in drawn.items():
        steps.draws.append(
            Draw(account, settled + 1, position, sequence, id, credits, before, before - credits)
        )
        position, before = position + 1, before - credits
    following = outlook.until
    postings: list[tuple[int, int, int, str, int, int]] = []
    for stake in stakes:
        taken = drawn.get(stake.id, 0)
        left, expires = stake.remaining - taken, stake.expires_at
        if expires is not None and expires <= now:
            if left:
                postings.append((expires, 1, stake.effective_at, "expire", -left, stake.id))
            steps.changed.append(Changed(stake.id, stake.used + taken, 0, 1))
            continue
        if taken:
            steps.changed.append(Changed(stake.id, stake.used + taken, left, 0))
        if expires is not None and expires < following:
            following = expires
    run = outlook.run
    if run is not None:
        bounds, many = run.bounds, len(run.bounds) - 1
        begun = bisect_right(bounds, now, 0, many)
        for number in range(bisect_left(bounds, due, 0, many), begun):
            start, end = bounds[number], bounds[number + 1]
            expires = end if number + 1 < many else run.expires_at
            over, grant = expires <= now, ~len(steps.begun)
            postings.append((start, 0, start, "grant", run.credits, grant))
            if over:
                postings.append((expires, 1, start, "expire", -run.credits, grant))
            elif expires < following:
                following = expires
            left = 0 if over else run.credits
            index = run.first_index + number
            steps.begun.append(Begun(account, run, index, left, start, expires, int(over), end))
        if begun < many and bounds[begun] < following:
            following = bounds[begun]
    postings.sort(key=_posting_order)
    for time, _, _, kind, amount, grant in postings:
        sequence += 1
        balance += amount
        last = time
        steps.entries.append(Entry(account, sequence, kind, amount, balance, grant, time))
        if amount > 0:
            steps.credits_granted += amount
        else:
            steps.expired += 1
            steps.credits_expired -= amount
    steps.standings.append(Standing(account, balance, sequence, 0, sequence, following, last))
    return True


def _drawn(stakes: Iterable[Stake], credits: int) -> dict[int, int] | None:
    """Spread *credits* in spending order (`lots.spread`); None if the grants do not hold as many."""
    drawn: dict[int, int] = {}
    for stake in sorted(stakes, key=_spending_order):
        take = min(credits, stake.remaining)
        if take > 0:
            drawn[stake.id] = take
            credits -= take
    return None if credits else drawn


def _spending_order(stake: Stake) -> tuple[int, int, int, str]:
    expires = FOREVER if stake.expires_at is None else stake.expires_at
    return (expires, SOURCE_ORDER[stake.source], stake.effective_at, stake.key)
