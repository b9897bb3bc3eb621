"""What will befall an account if nothing new is heard, foreseen when it is written (docs/rules.md §4).

Almost everybody who is due needs the same two entries: the old allowance expires, the next begins.
Reading all facts again to find that out is what makes a refill slow. So whoever writes an account
also writes down its outlook, and `steps` takes what is due from that. An outlook is either exactly
what reconcile would do or there is none.

Pure: nothing is read or written. Times are microseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from polarcredits.credits import Book
from polarcredits.entitlements import AccountFacts, Entitlements
from polarcredits.periods import FOREVER, to_micros
from polarcredits.terms import Desired

LONGEST_RUN = 32
"""The most allowances that one outlook foresees; reconcile foresees the next ones then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Allowances of one billing period that follow each other and differ in nothing but their time."""

    bounds: tuple[int, ...]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What befalls an account before `until`: grants expire, and those of `run` begin."""

    until: int
    product_id: str | None
    """The product whose plan shows until then; None for the default plan."""
    run: Run | None


def foresee(book: Book, facts: AccountFacts, entitled: Entitlements, now: datetime) -> Outlook | None:
    """Return the outlook of an account that reconcile has made true at *now*; None if it is not plain.

    Plain: nothing held, owed (only that is carried) or rolled over, terms written down, at most one live
    subscription. Then what is desired depends on the time only by what has begun (`entitlements`),
    and spending changes only what is left of each grant (`credits.advance`).
    """
    live = [subscription.latest for subscription in facts.subscriptions if subscription.live(now)]
    known = {lot.key for lot in book.lots}
    if (
        not entitled.frozen
        or len(live) > 1
        or any(lot.held or lot.owed or lot.debt for lot in book.lots)
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
