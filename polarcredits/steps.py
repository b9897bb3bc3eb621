"""Taking an account to where its outlook says: expiries and allowances, as rows to be written.

A refill of a million users comes through here, so rows are plain tuples in the order of their columns.
Pure: nothing is read or written. Times are microseconds since 1970.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from polarcredits.lots import SOURCE_ORDER
from polarcredits.periods import FOREVER

Standing = tuple[int, int, int, int, int, int, int]
"""A balance row: account, balance, sequence, unsettled, settled sequence, next due, last entry's time."""
Foreseen = tuple[int, Sequence[int], int, int, int]
"""An outlook: until, bounds of the run (empty for none), first index, expiry of the last, credits."""
Stake = tuple[int, str, str, int, int, int, int | None]
"""A grant that has not expired: id, source, key, used, remaining, effective at, expires at."""


@dataclass(slots=True)
class Steps:
    """What is to be written for many accounts, and the sums of it."""

    entries: list[tuple[int, int, str, int, int, int, int]] = field(default_factory=list)
    """Account, sequence, type, amount, balance after, grant, occurred at."""
    begun: list[tuple[int, int, int, int, int, int, int, int]] = field(default_factory=list)
    """Grants: id, account, index, remaining, effective at, expires at, expired, end of the period."""
    changed: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Grants that were drawn on or have expired: id, used, remaining, expired."""
    draws: list[tuple[int, int, int, int, int, int, int, int]] = field(default_factory=list)
    """Account, first sequence, position, last sequence, grant, credits, balance from, balance to."""
    standings: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    """Account, balance, sequence, next due, last entry's time."""
    expired: int = 0
    credits_granted: int = 0
    credits_expired: int = 0


_posting_order = itemgetter(0, 1, 2)


def step(
    standing: Standing,
    foreseen: Foreseen,
    stakes: Sequence[Stake],
    now: int,
    ids: Iterator[int],
    steps: Steps,
) -> bool:
    """Add to *steps* what makes a due account true at *now*; False, and nothing added, where it cannot.

    *stakes* are all its grants that have not expired, by id; new ones take their id from *ids*.
    Everything from `next due` on is still to be done and everything before it is done, so an outlook
    stays true when it was followed, and nothing is dated before an entry that is there.
    """
    account, balance, sequence, unsettled, settled, due, last = standing
    until, bounds, first_index, last_expiry, credits = foreseen
    drawn = _drawn(stakes, unsettled) if unsettled else {}
    if now >= until or drawn is None:
        return False
    before = balance + unsettled
    for position, (id, taken) in enumerate(drawn.items()):
        row = (account, settled + 1, position, sequence, id, taken, before, before - taken)
        steps.draws.append(row)
        before -= taken
    following = until
    postings: list[tuple[int, int, int, str, int, int]] = []
    for id, _, _, used, remaining, effective, expires in stakes:
        taken = drawn.get(id, 0)
        if expires is not None and expires <= now:
            if remaining > taken:
                postings.append((expires, 1, effective, "expire", taken - remaining, id))
            steps.changed.append((id, used + taken, 0, 1))
            continue
        if taken:
            steps.changed.append((id, used + taken, remaining - taken, 0))
        if expires is not None and expires < following:
            following = expires
    if bounds:
        many = len(bounds) - 1
        begun = bisect_right(bounds, now, 0, many)
        for number in range(bisect_left(bounds, due, 0, many), begun):
            id, start, end = next(ids), bounds[number], bounds[number + 1]
            expiry = end if number + 1 < many else last_expiry
            over = expiry <= now
            postings.append((start, 0, start, "grant", credits, id))
            if over:
                postings.append((expiry, 1, start, "expire", -credits, id))
            elif expiry < following:
                following = expiry
            left, index = 0 if over else credits, first_index + number
            steps.begun.append((id, account, index, left, start, expiry, int(over), end))
        if begun < many and bounds[begun] < following:
            following = bounds[begun]
    postings.sort(key=_posting_order)
    for last, _, _, kind, amount, grant in postings:
        sequence += 1
        balance += amount
        steps.entries.append((account, sequence, kind, amount, balance, grant, last))
        if amount > 0:
            steps.credits_granted += amount
        else:
            steps.expired += 1
            steps.credits_expired -= amount
    steps.standings.append((account, balance, sequence, following, last))
    return True


def _drawn(stakes: Iterable[Stake], credits: int) -> dict[int, int] | None:
    """Spread *credits* in spending order (`lots.spread`); None if the grants do not hold as many."""
    drawn: dict[int, int] = {}
    for id, _, _, _, remaining, _, _ in sorted(stakes, key=_spending_order):
        take = min(credits, remaining)
        if take > 0:
            drawn[id] = take
            credits -= take
    return None if credits else drawn


def _spending_order(stake: Stake) -> tuple[int, int, int, str]:
    _, source, key, _, _, effective, expires = stake
    return (FOREVER if expires is None else expires, SOURCE_ORDER[source], effective, key)
