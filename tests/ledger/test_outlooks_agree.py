"""Random lives in which every refill is done twice: one by one by reconcile, and by what was foreseen."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from polarcredits.errors import PolarCreditsError
from polarcredits.ledger import schema
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.periods import parse_time
from polarcredits.plans import Catalog, parse_catalog
from polarcredits.refill import refill
from polarcredits.webhooks.fixtures import Story
from tests.ledger.conftest import copy_of_template
from tests.ledger.twice import both_ways
from tests.ledger.worlds import feed, play

START = datetime(2027, 1, 29, tzinfo=UTC)
PRODUCTS = ("pro", "team", "daily", "weekly", "rolling", "once")


def sold(name: str, clawback: str, *, later: bool) -> Catalog:
    """Return a catalog whose monthly plan is called *name*; *later* it sells one product more."""
    return parse_catalog(
        f"""
        [policy]
        clawback = "{clawback}"
        [plans.{name}]
        credits = 500
        interval = "month"
        product_ids = ["pro"]
        [plans.team]
        credits = 100
        interval = "month"
        per_seat = true
        renewal_grace = "5h"
        product_ids = ["team" {', "unknown"' if later else ""}]
        [plans.daily]
        credits = 10
        interval = "day"
        product_ids = ["daily"]
        [plans.weekly]
        credits = 50
        interval = "week"
        product_ids = ["weekly"]
        [plans.rolling]
        credits = 300
        interval = "month"
        rollover = 200
        product_ids = ["rolling"]
        [packs.once]
        credits = 70
        product_ids = ["once"]
        expires_after = "40d"
        """,
        pro_product_id=None,
    )


class Lives(RuleBasedStateMachine):
    """A few users of one database, and two ways to refill them."""

    url = ""

    @initialize(clawback=st.sampled_from(["owed", "floor", "debt"]))
    def begin(self, clawback: str) -> None:
        """Open the ledger; nobody is there yet."""
        self.clawback, self.name, self.later = clawback, "pro", False
        self.ledger = Ledger(self.url, sold("pro", clawback, later=False), actor="refill")
        self.now = START
        self.run = f"{datetime.now(UTC).timestamp()}"
        self.lives: list[Story] = []

    def teardown(self) -> None:
        """Leave nobody behind who is due."""
        if hasattr(self, "ledger"):
            refill(self.ledger, at=datetime(2040, 1, 1, tzinfo=UTC))
            self.ledger.close()

    def tell(self, life: Story, events: list[dict[str, Any]]) -> None:
        """Let the ledger hear what happened, and time go on with it."""
        feed(self.ledger, events)
        self.now = max(self.now, life.now)

    def pick(self, number: int) -> Story | None:
        """Choose somebody, at the present time."""
        if not self.lives:
            return None
        life = self.lives[number % len(self.lives)]
        life.now = self.now
        return life

    @rule(
        product=st.sampled_from([*PRODUCTS, "unknown", "pro", "pro"]),
        interval=st.sampled_from(["year", "year", "month"]),
        hours=st.integers(0, 80),
        trial=st.sampled_from([0, 0, 0, 9]),
    )
    def buy(self, product: str, interval: Any, hours: int, trial: int) -> None:
        """Somebody new buys something."""
        self.now += timedelta(hours=hours)
        life = Story(f"{self.run}-{len(self.lives)}", at=self.now, interval=interval)
        self.lives.append(life)
        days = timedelta(days=trial) if trial else None
        once = product == "once"
        self.tell(life, life.pack("once") if once else life.purchase(product, seats=3, trial=days))

    @rule(number=st.integers(0, 9), credits=st.integers(1, 900))
    def spend(self, number: int, credits: int) -> None:
        """Spend, which settles nothing; it may be refused."""
        life = self.pick(number)
        if life is None:
            return
        with suppress(PolarCreditsError):
            self.ledger.deduct(life.customer["external_id"] or "", credits, at=self.now)

    @rule(number=st.integers(0, 9), what=st.integers(0, 8), much=st.integers(1, 60))
    def act(self, number: int, what: int, much: int) -> None:
        """Grant, hold, refund, change, cancel, fail, renew, or end a subscription."""
        life = self.pick(number)
        if life is None:
            return
        user = life.customer["external_id"] or ""
        try:
            if what == 0:
                self.ledger.grant(user, much, expires_in=timedelta(days=much), at=self.now)
            elif what == 1:
                self.ledger.hold(user, much, ttl=timedelta(hours=much % 24 + 1), at=self.now)
        except PolarCreditsError:
            return
        held = life.subscription
        if what == 3 and life.orders and life.orders[-1]["refunded_amount"] < life.orders[-1]["net_amount"]:
            self.tell(life, life.refund(much))
        if held is None or held["ended_at"] or held["status"] not in ("active", "past_due"):
            return
        over = parse_time(held["current_period_end"]) <= self.now
        if what == 4 and not over:
            self.tell(life, life.plan_change(PRODUCTS[much % 4]))
        elif what == 5 and not over:
            self.tell(life, life.cancel_at_period_end())
        elif what == 6 and over and not held["ends_at"]:
            self.tell(life, life.renewal(self.now) if much % 3 else life.past_due(self.now))
        elif what == 7 and much > 40:
            self.tell(life, life.customer_deleted() if much > 55 else life.revoke())
        elif what == 8:
            self.tell(life, life.seats_change(much % 5 + 1))

    @rule(name=st.sampled_from(["pro", "gold"]), later=st.booleans())
    def edit(self, name: str, later: bool) -> None:
        """Edit the catalog: a plan's name, and a product that was unknown."""
        self.ledger.catalog = sold(name, self.clawback, later=later)

    @rule(days=st.sampled_from([1, 3, 10, 31, 31, 31, 100, 400]), hours=st.integers(0, 23))
    def refill(self, days: int, hours: int) -> None:
        """Let time pass and refill: both ways leave the same rows and tell the same."""
        self.now += timedelta(days=days, hours=hours)
        both_ways(self.ledger, self.now)

    @invariant()
    def laws_hold(self) -> None:
        """The ledger is sound."""
        if hasattr(self, "ledger"):
            for life in self.lives:
                assert verify(self.ledger, user=life.customer["external_id"] or None).problems == []


def test_what_was_foreseen_is_what_reconcile_does_on_sqlite() -> None:
    """§4.3: the same rows, whole, and the same report."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'lives.db'}"
        schema.make_if_absent(url)
        play(Lives, url, 12)


def test_what_was_foreseen_is_what_reconcile_does_on_postgresql(postgres: str) -> None:
    """The same, shorter, on PostgreSQL."""
    play(Lives, copy_of_template(postgres), 3)
