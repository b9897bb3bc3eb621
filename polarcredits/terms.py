"""Terms and desired grants: the values that entitlements are made of (docs/rules.md §1.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from polarcredits.plans import Catalog, Pack, Plan

Source = Literal["lifetime", "allowance", "rollover", "trial", "pack", "manual"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a plan or pack promised when a period or order was first confirmed (§1.3)."""

    name: str
    credits: int
    interval: str | None
    per_seat: bool = False
    rollover: int | None = 0
    trial_credits: int = 0
    renewal_grace: timedelta = timedelta(0)
    expires_after: timedelta | None = None
    clawback: str = "owed"
    upgrade: str = "prorated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollover:
    """Where a rollover grant's credits come from: the rest of these keys, up to `cap`."""

    sources: tuple[str, ...]
    cap: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """A grant that should exist. `gross` is before refunds, which took `clawed` of it."""

    key: str
    source: Source
    plan: str | None
    gross: int
    clawed: int = 0
    effective_at: datetime
    expires_at: datetime | None
    clawback: str = "owed"
    rollover: Rollover | None = None
    rollover_cap: int | None = 0
    continues: bool = False
    """True where it goes on from a cut-off grant, whose overuse it starts with (§4.5)."""
    cause_kind: str
    cause_id: str
    period_start: datetime | None = None
    period_end: datetime | None = None


class TermsBook:
    """Terms by (subject, product): those written down, else what the catalog says today."""

    def __init__(self, written: Mapping[tuple[str, str], Terms], catalog: Catalog) -> None:
        self._written = written
        self._catalog = catalog
        self._new: dict[tuple[str, str], Terms] = {}
        self.confirmed: set[str] = set()
        """Subjects whose terms are to be written down, being confirmed."""
        self.unknown: set[str] = set()
        """Products that were asked for and are in no plan or pack."""

    @property
    def new(self) -> dict[tuple[str, str], Terms]:
        """Return the terms that confirmed periods and orders used for the first time."""
        return {key: terms for key, terms in self._new.items() if key[0] in self.confirmed}

    @property
    def frozen(self) -> bool:
        """Say whether all that was asked for is known and written down, so that no edit changes it."""
        return not self.unknown and all(subject in self.confirmed for subject, _ in self._new)

    def plan(self, subject: str, product_id: str) -> Terms | None:
        """Return the terms of a plan's product for *subject*, remembering new ones."""
        return self._find(subject, product_id, self._catalog.plan_for_product(product_id))

    def pack(self, subject: str, product_id: str) -> Terms | None:
        """Return the terms of a pack's product (or of a plan sold once) for *subject*."""
        offer: Plan | Pack | None = self._catalog.pack_for_product(product_id)
        if offer is None:
            plan = self._catalog.plan_for_product(product_id)
            offer = plan if plan is not None and plan.interval == "lifetime" else None
        return self._find(subject, product_id, offer)

    def _find(self, subject: str, product_id: str, offer: Plan | Pack | None) -> Terms | None:
        key = (subject, product_id)
        found = self._written.get(key) or self._new.get(key)
        if found is None and offer is not None:
            found = self._new[key] = self._terms(offer)
        if found is None:
            self.unknown.add(product_id)
        return found

    def _terms(self, offer: Plan | Pack) -> Terms:
        policy = self._catalog.policy
        if isinstance(offer, Pack):
            return Terms(
                name=offer.name,
                credits=offer.credits,
                interval=None,
                expires_after=offer.expires_after,
                clawback=policy.clawback,
            )
        return Terms(
            name=offer.name,
            credits=offer.credits,
            interval=offer.interval,
            per_seat=offer.per_seat,
            rollover=offer.rollover,
            trial_credits=offer.trial_credits,
            renewal_grace=offer.renewal_grace,
            clawback=policy.clawback,
            upgrade=policy.upgrade,
        )
