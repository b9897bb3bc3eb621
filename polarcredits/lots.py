"""Lots: grants as the ledger holds them, and the order in which they are spent (docs/rules.md §§2, 5).

Pure: nothing is read or written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from polarcredits.terms import Rollover

EntryType = Literal["grant", "deduct", "reversal", "expire", "clawback", "adjust", "transfer"]

SOURCE_ORDER = {"trial": 0, "rollover": 1, "allowance": 2, "lifetime": 3, "manual": 4, "pack": 5}
"""Which source is spent first where grants expire together (§5.1)."""
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(slots=True, kw_only=True, eq=False)
class Lot:
    """A grant as the ledger holds it. `remaining` is what is posted; `expired` says it lapsed."""

    id: int | None = None
    key: str
    source: str
    plan: str | None
    gross: int
    clawed: int = 0
    used: int = 0
    carried_in: int = 0
    remaining: int = 0
    held: int = 0
    effective_at: datetime
    expires_at: datetime | None = None
    expired: bool = False
    withdrawn: bool = False
    clawback: str = "owed"
    continues: bool = False
    rollover: Rollover | None = None
    cause_kind: str = "manual"
    cause_id: str | None = None
    period_start: datetime | None = None
    period_end: datetime | None = None

    @property
    def worth(self) -> int:
        """What was granted less what refunds took, never below 0."""
        return max(0, self.gross - self.clawed)

    @property
    def spent(self) -> int:
        """What counts as used: spent less reversed, and what it started with for owed credits."""
        return self.used + self.carried_in

    @property
    def amount(self) -> int:
        """What the grant is worth now (docs/rules.md §2)."""
        return max(self.spent, self.worth)

    @property
    def shortfall(self) -> int:
        """What was used beyond the grant's worth; a withdrawn grant's use is let be."""
        return 0 if self.withdrawn else max(0, self.spent - self.worth)

    @property
    def debt(self) -> int:
        """The part of the shortfall that makes the balance negative (`clawback = "debt"`)."""
        if self.clawback != "debt" or self.withdrawn:
            return 0
        return max(0, self.shortfall - max(0, self.spent - self.gross))

    @property
    def owed(self) -> int:
        """The part of the shortfall that the next allowance or pack starts with as used."""
        if self.withdrawn:
            return 0
        cut = max(0, self.spent - self.gross)
        return self.shortfall if self.clawback == "owed" else cut

    def lapsed(self, now: datetime) -> bool:
        """Say whether it has expired at *now*."""
        return self.expires_at is not None and self.expires_at <= now


@dataclass(slots=True)
class Draw:
    """A stretch of spending that one grant paid, between two balances."""

    lot: Lot
    credits: int
    balance_from: int
    balance_to: int


def spending_order(lot: Lot) -> tuple[datetime, int, datetime, str]:
    """Return the key by which grants are spent: soonest to expire first (§5.1)."""
    return (lot.expires_at or _NEVER, SOURCE_ORDER[lot.source], lot.effective_at, lot.key)


def spread(lots: Iterable[Lot], credits: int, balance: int) -> list[Draw]:
    """Spend *credits* over grants in spending order, from *balance* downwards; leaves holds alone."""
    draws: list[Draw] = []
    left = credits
    for lot in sorted(lots, key=spending_order):
        take = min(left, lot.remaining - lot.held)
        if take <= 0:
            continue
        draws.append(Draw(lot, take, balance, balance - take))
        lot.used += take
        lot.remaining -= take
        balance -= take
        left -= take
    if left:
        raise AssertionError(f"{left} credits were spent that no grant holds")
    return draws


def reserve(lots: Iterable[Lot], credits: int) -> list[tuple[Lot, int]]:
    """Hold *credits* on the grants next in spending order (§5.7)."""
    parts: list[tuple[Lot, int]] = []
    left = credits
    for lot in sorted(lots, key=spending_order):
        take = min(left, lot.remaining - lot.held)
        if take > 0:
            lot.held += take
            left -= take
            parts.append((lot, take))
    return parts
