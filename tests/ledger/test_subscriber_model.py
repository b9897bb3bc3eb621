"""Random lives of a subscriber against a model of one allowance: docs/rules.md §§4.5, 4.8, 5.6."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from polarcredits.errors import InsufficientCredits
from polarcredits.ledger import schema
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import statement
from polarcredits.periods import parse_time
from polarcredits.refill import refill
from polarcredits.webhooks.fixtures import Story
from tests.ledger.worlds import catalog, feed, play

START = datetime(2027, 4, 1, tzinfo=UTC)
PRICE = 2000
CREDITS = {"pro": 5000, "max": 20000}


@dataclass
class Model:
    """One allowance and the lifetime grant; `level` is what the plan gives before refunds."""

    plan: str = "pro"
    level: int = 5000
    refunded: int = 0
    used: int = 0
    owed_before: int = 0
    lifetime: int = 1000
    refunds: list[int] = field(default_factory=list)
    spent: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def worth(self) -> int:
        """What the allowance is worth by the facts."""
        return self.level - self.level * self.refunded // PRICE

    @property
    def remaining(self) -> int:
        """What of it can be spent."""
        return max(0, self.worth - self.used)

    @property
    def owed(self) -> int:
        """What was used and is not paid for."""
        return self.owed_before + max(0, self.used - self.worth)

    def change(self, plan: str, left: timedelta, whole: timedelta) -> None:
        """Add the part of a raise that is left of the period; cut at once."""
        raised = CREDITS[plan] - CREDITS[self.plan]
        if raised > 0:
            self.level += raised * (left // timedelta(microseconds=1)) // (whole // timedelta(microseconds=1))
        else:
            self.level = min(self.level, CREDITS[plan])
        self.plan = plan

    def renew(self) -> None:
        """Begin a period that starts with what is owed as used."""
        owed, self.level, self.refunded = self.owed, CREDITS[self.plan], 0
        self.used = min(owed, self.level)
        self.owed_before = owed - self.used
        self.refunds.clear()
        self.spent.clear()


class Subscriber(RuleBasedStateMachine):
    """A subscriber's life, in the ledger and in the model at once."""

    url = ""

    @initialize()
    def begin(self) -> None:
        """Buy the smaller plan."""
        self.ledger = Ledger(self.url, catalog(), actor="test")
        self.user = f"user-{datetime.now(UTC).timestamp()}"
        self.life = Story(self.user, at=START)
        self.model = Model()
        self.tell(self.life.purchase("pro"))

    def teardown(self) -> None:
        """Close the ledger."""
        if hasattr(self, "ledger"):
            self.ledger.close()

    def tell(self, events: list[dict[str, Any]]) -> None:
        """Let the ledger hear what happened."""
        feed(self.ledger, events)

    def bound(self, name: str) -> datetime:
        """A bound of the present billing period."""
        assert self.life.subscription is not None
        return parse_time(self.life.subscription[f"current_period_{name}"])

    @rule(hours=st.integers(1, 200))
    def pass_time(self, hours: int) -> None:
        """Go on, but not past the period."""
        later = self.life.now + timedelta(hours=hours)
        if later < self.bound("end") - timedelta(hours=1):
            self.life.now = later

    @rule(credits=st.integers(1, 3000) | st.just(5000))
    def deduct(self, credits: int) -> None:
        """Spend the allowance first, then the lifetime grant; or be refused."""
        model = self.model
        if credits > model.remaining + model.lifetime:
            with pytest.raises(InsufficientCredits) as refused:
                self.ledger.deduct(self.user, credits, at=self.life.now)
            assert refused.value.available == model.remaining + model.lifetime
            return
        receipt = self.ledger.deduct(self.user, credits, at=self.life.now)
        part = min(credits, model.remaining)
        model.used += part
        model.lifetime -= credits - part
        model.spent[receipt.transaction.id] = (part, credits - part)

    @precondition(lambda self: self.model.spent)
    @rule(data=st.data())
    def reverse(self, data: st.DataObject) -> None:
        """Give a deduction of this period back; what is owed is paid first."""
        ids = list(self.model.spent)
        id = ids[data.draw(st.integers(0, len(ids) - 1))]
        self.ledger.reverse(id, at=self.life.now)
        part, rest = self.model.spent.pop(id)
        self.model.used -= part
        self.model.lifetime += rest

    @rule(plan=st.sampled_from(sorted(CREDITS)))
    def change_plan(self, plan: str) -> None:
        """Upgrade or downgrade inside the period."""
        if plan == self.model.plan:
            return
        events = self.life.plan_change(plan)
        changed = parse_time(events[0]["timestamp"])
        end = self.bound("end")
        self.tell(events)
        self.model.change(plan, end - changed, end - self.bound("start"))

    @precondition(lambda self: self.model.refunded < PRICE)
    @rule(data=st.data())
    def refund(self, data: st.DataObject) -> None:
        """Refund a part of what this period cost, or the rest."""
        left = PRICE - self.model.refunded
        cents = data.draw(st.integers(1, left) | st.just(left))
        self.tell(self.life.refund(cents))
        self.model.refunded += cents
        self.model.refunds.append(cents)

    @precondition(lambda self: self.model.refunds)
    @rule()
    def fail_refund(self) -> None:
        """Let the last refund fail after all."""
        self.tell(self.life.refund_failed())
        self.model.refunded -= self.model.refunds.pop()
        self.model.refunds.clear()  # a story knows its last refund only

    @rule()
    def renew(self) -> None:
        """Begin the next period, and pay for it."""
        self.tell(self.life.renewal())
        self.model.renew()

    @rule()
    def refill(self) -> None:
        """Write down what is due; it changes nothing that can be seen."""
        refill(self.ledger, at=self.life.now)

    @invariant()
    def agree(self) -> None:
        """Plan, balance and what is owed are those of the model, and the laws hold."""
        if not hasattr(self, "ledger"):
            return
        told = statement(self.ledger, self.user, self.life.now)
        wanted = (self.model.plan, self.model.remaining + self.model.lifetime, self.model.owed)
        assert (told.plan, told.balance.balance, told.balance.owed) == wanted
        assert verify(self.ledger, user=self.user).problems == []


def test_sqlite_agrees_with_the_model() -> None:
    """Random plan changes, refunds, spends, reversals and renewals on SQLite."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'model.db'}"
        schema.make_if_absent(url)
        play(Subscriber, url, 30)


def test_postgresql_agrees_with_the_model(postgres: str) -> None:
    """The same, shorter, on PostgreSQL."""
    from tests.ledger.conftest import copy_of_template

    play(Subscriber, copy_of_template(postgres), 6)
