"""Random lives against a model that knows nothing of settlement, sequences or SQL."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from polarcredits.errors import AlreadyReversed, HoldClosed, InsufficientCredits
from polarcredits.ledger import schema
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.refill import refill
from tests.ledger.fronts import Awaited, Crowded
from tests.ledger.worlds import catalog, play

START = datetime(2027, 4, 1, tzinfo=UTC)
FOREVER = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass
class Purse:
    """A grant of the model."""

    left: int
    expires: datetime
    order: tuple[int, int]
    held: int = 0


@dataclass
class Model:
    """Grants as purses; a deduction remembers from which purses it came."""

    now: datetime = START
    purses: list[Purse] = field(default_factory=list)
    spent: dict[str, list[tuple[Purse, int]]] = field(default_factory=dict)
    holds: dict[str, tuple[datetime, list[tuple[Purse, int]]]] = field(default_factory=dict)

    def settle(self) -> None:
        """Let what is due happen: lapses, then expiries."""
        for id, (until, parts) in list(self.holds.items()):
            if until <= self.now:
                del self.holds[id]
                for purse, credits in parts:
                    purse.held -= credits
        for purse in self.purses:
            if purse.expires <= self.now:
                purse.left = purse.held

    def take(self, credits: int) -> list[tuple[Purse, int]]:
        """Choose purses, soonest to expire first."""
        parts = []
        for purse in sorted(self.purses, key=lambda purse: (purse.expires, purse.order)):
            part = min(credits, purse.left - purse.held)
            if part:
                parts.append((purse, part))
                credits -= part
        return parts

    @property
    def balance(self) -> int:
        """What is left in all purses."""
        return sum(purse.left for purse in self.purses)

    @property
    def held(self) -> int:
        """What is held in all purses."""
        return sum(purse.held for purse in self.purses)


def pick(data: st.DataObject, known: Mapping[str, object]) -> str:
    """Choose one of the ids by its place, since ids differ from run to run."""
    return list(known)[data.draw(st.integers(0, len(known) - 1))]


class Lives(RuleBasedStateMachine):
    """One user's life, in the ledger and in the model at once."""

    url = ""
    front: type[Ledger] = Ledger

    @initialize()
    def begin(self) -> None:
        """Open an empty ledger."""
        self.ledger = self.front(self.url, catalog(), actor="test")
        self.user = f"user-{datetime.now(UTC).timestamp()}"
        self.ledger.grant(self.user, 1, create=True, at=START)
        self.model = Model(purses=[Purse(1000, FOREVER, (3, 0)), Purse(1, FOREVER, (4, 1))])
        self.count = 1

    def teardown(self) -> None:
        """Close it."""
        if hasattr(self, "ledger"):
            self.ledger.close()

    @rule(hours=st.integers(1, 40))
    def pass_time(self, hours: int) -> None:
        """Nothing runs; what is due is true all the same."""
        self.model.now += timedelta(hours=hours)
        self.model.settle()

    @rule(credits=st.integers(1, 500), hours=st.none() | st.integers(1, 100))
    def grant(self, credits: int, hours: int | None) -> None:
        """Give credits, for a while or for good."""
        model = self.model
        model.now += timedelta(seconds=1)
        until = None if hours is None else model.now + timedelta(hours=hours)
        self.ledger.grant(self.user, credits, expires_at=until, at=model.now)
        self.count += 1
        model.purses.append(Purse(credits, until or FOREVER, (4, self.count)))

    @rule(credits=st.integers(1, 900))
    def deduct(self, credits: int) -> None:
        """Spend, or be refused with the right number."""
        available = self.model.balance - self.model.held
        if credits > available:
            with pytest.raises(InsufficientCredits) as refused:
                self.ledger.deduct(self.user, credits, at=self.model.now)
            assert refused.value.available == available
            return
        receipt = self.ledger.deduct(self.user, credits, at=self.model.now)
        parts = self.model.take(credits)
        for purse, part in parts:
            purse.left -= part
        self.model.spent[receipt.transaction.id] = parts

    @precondition(lambda self: self.model.spent)
    @rule(data=st.data())
    def reverse(self, data: st.DataObject) -> None:
        """Give a deduction back, once."""
        id = pick(data, self.model.spent)
        self.ledger.reverse(id, at=self.model.now)
        for purse, part in self.model.spent.pop(id):
            purse.left += part
        self.model.settle()
        with pytest.raises(AlreadyReversed):
            self.ledger.reverse(id, at=self.model.now)

    @rule(credits=st.integers(1, 400), hours=st.integers(1, 24))
    def hold(self, credits: int, hours: int) -> None:
        """Reserve, or be refused."""
        model = self.model
        ttl = timedelta(hours=hours)
        if credits > model.balance - model.held:
            with pytest.raises(InsufficientCredits):
                self.ledger.hold(self.user, credits, ttl=ttl, at=model.now)
            return
        placed = self.ledger.hold(self.user, credits, ttl=ttl, at=model.now)
        parts = model.take(credits)
        for purse, part in parts:
            purse.held += part
        model.holds[placed.id] = (model.now + ttl, parts)

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data())
    def capture(self, data: st.DataObject) -> None:
        """Spend a part of a hold, or all; the rest is free."""
        id = pick(data, self.model.holds)
        _, parts = self.model.holds.pop(id)
        wanted = data.draw(st.integers(1, sum(part for _, part in parts)))
        receipt, _ = self.ledger.holds.capture(id, wanted, at=self.model.now)
        spent = []
        for purse, part in parts:
            purse.held -= part
            taken = min(part, wanted)
            wanted -= taken
            purse.left -= taken
            if taken:
                spent.append((purse, taken))
        self.model.spent[receipt.transaction.id] = spent
        self.model.settle()
        with pytest.raises(HoldClosed):
            self.ledger.holds.release(id, at=self.model.now)

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Free a hold."""
        id = pick(data, self.model.holds)
        _, parts = self.model.holds.pop(id)
        self.ledger.holds.release(id, at=self.model.now)
        for purse, part in parts:
            purse.held -= part
        self.model.settle()

    @rule()
    def refill(self) -> None:
        """Write down what is due; it changes nothing that can be seen."""
        refill(self.ledger, at=self.model.now)

    @invariant()
    def agree(self) -> None:
        """Balance and holds are those of the model, and the laws hold."""
        if not hasattr(self, "ledger"):
            return
        told = self.ledger.balance(self.user, at=self.model.now)
        assert (told.balance, told.held) == (self.model.balance, self.model.held)
        assert verify(self.ledger, user=self.user).problems == []


@pytest.mark.parametrize(("front", "lives"), [(Ledger, 30), (Crowded, 30), (Awaited, 8)])
def test_sqlite_agrees_with_the_model(front: type[Ledger], lives: int) -> None:
    """Random grants, spends, holds, reversals and expiries on SQLite, behind each front."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'model.db'}"
        schema.make_if_absent(url)
        play(type("Behind", (Lives,), {"front": front}), url, lives)


@pytest.mark.parametrize("front", [Ledger, Crowded])
def test_postgresql_agrees_with_the_model(postgres: str, front: type[Ledger]) -> None:
    """The same, shorter, on PostgreSQL."""
    from tests.ledger.conftest import copy_of_template

    play(type("Behind", (Lives,), {"front": front}), copy_of_template(postgres), 6)
