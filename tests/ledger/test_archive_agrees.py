"""Random lives in two ledgers, one of which is archived now and then: both answer alike."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from polarcredits.errors import NotFound, PolarCreditsError
from polarcredits.ledger.ledger import Ledger
from polarcredits.refill import refill
from polarcredits.webhooks.fixtures import Payload, Story
from tests.ledger.archives import archive, compare, copy_of, count, told
from tests.ledger.conftest import copy_of_template
from tests.ledger.worlds import at, catalog, feed


@dataclass
class Lives:
    """Some users, and what chance does to them in every ledger at once, the archived one first."""

    luck: random.Random
    ledgers: list[Ledger]
    now: datetime = field(default_factory=lambda: at("04-01"))
    stories: list[Story] = field(default_factory=list)
    users: list[str] = field(default_factory=lambda: ["ann", "ben", "cid"])
    spent: list[str] = field(default_factory=list)
    holds: list[list[str]] = field(default_factory=list)

    def begin(self) -> None:
        """Let two buy by their ids, one without, and one not at all."""
        for ledger in self.ledgers:
            ledger.grant("cid", 50, create=True, at=self.now)
        for user, product in (("ann", "pro"), ("ben", "max"), (None, "pro")):
            story = Story(user, at=self.now)
            self.stories.append(story)
            self.tell(story.purchase(product))
        self.users.append(f"polar:{self.stories[-1].customer['id']}")

    def tell(self, events: list[Payload]) -> None:
        """Feed the same events to all."""
        for ledger in self.ledgers:
            feed(ledger, events, now=self.now)

    def same(self, work: Callable[[Ledger, int], Any]) -> list[Any]:
        """Do the same in all; they must answer alike. What is archived is asked of no other."""
        answers: list[Any] = []
        for number, ledger in enumerate(self.ledgers):
            try:
                answers.append(work(ledger, number))
            except PolarCreditsError as error:
                if isinstance(error, NotFound) and "archived" in error.message:
                    return []
                answers.append((type(error), re.sub("hold_[0-9a-f]+", "hold", error.message)))
        assert all(answer == answers[0] for answer in answers)
        return answers

    def step(self) -> None:
        """Let a while pass, and something happen."""
        self.now += timedelta(seconds=self.luck.choice([2, 600, 40_000, 300_000]))
        deeds = [self.spend] * 6 + [self.give, self.reverse, self.reverse, self.hold, self.close, self.refill]
        self.luck.choice([*deeds, self.buy, self.buy, self.link])()

    def spend(self) -> None:
        """Deduct, or be refused."""
        user, credits = self.luck.choice(self.users), self.luck.choice([1, 7, 300, 2500])

        def work(ledger: Ledger, _: int) -> Any:
            receipt = ledger.deduct(user, credits, at=self.now)
            return told(receipt.transaction), receipt.balance, receipt.available

        answers = self.same(work)
        self.spent += [answers[0][0].id] if len(answers[0]) == 3 else []

    def give(self) -> None:
        """Grant, for a while or for good."""
        user, hours = self.luck.choice(self.users), self.luck.choice([None, 5, 90])
        until = None if hours is None else self.now + timedelta(hours=hours)
        self.same(lambda ledger, _: ledger.grant(user, 400, expires_at=until, at=self.now).balance)

    def reverse(self) -> None:
        """Give a deduction back, if that was not done."""
        if self.spent:
            id = self.luck.choice(self.spent)
            self.same(lambda ledger, _: told(ledger.reverse(id, at=self.now).transaction))

    def hold(self) -> None:
        """Set credits aside."""
        user, ids = self.luck.choice(self.users), ["", ""]

        def work(ledger: Ledger, number: int) -> int:
            state = ledger.hold(user, 40, ttl=timedelta(hours=20), at=self.now).state
            ids[number] = state.id
            return state.available

        self.same(work)
        if ids[0]:
            self.holds.append(ids if ids[1] else [ids[0]] * 2)

    def close(self) -> None:
        """Capture a hold or release it, if it has not lapsed."""
        if not self.holds:
            return
        ids, captured = self.holds.pop(self.luck.randrange(len(self.holds))), self.luck.choice([0, 25])

        def work(ledger: Ledger, number: int) -> int:
            if not captured:
                return ledger.holds.release(ids[number], at=self.now).available
            return ledger.holds.capture(ids[number], captured, at=self.now)[0].available

        self.same(work)

    def refill(self) -> None:
        """Write down what has fallen due."""
        self.same(lambda ledger, _: refill(ledger, at=self.now).granted)

    def buy(self) -> None:
        """Let Polar tell of a renewal, a pack, a refund or a change of plan."""
        story = self.luck.choice(self.stories)
        deed = self.luck.choice(["renewal", "renewal", "pack", "refund", "plan"])
        if deed == "renewal":
            self.tell(story.renewal(self.now))
        elif deed == "pack":
            self.tell(story.pack("pack", self.now))
        elif deed == "plan":
            self.tell(story.plan_change(self.luck.choice(["pro", "max"]), self.now))
        else:
            order = self.luck.choice(story.orders)
            left = order["net_amount"] - order["refunded_amount"]
            if left > 0:
                self.tell(story.refund(max(1, left // 3), self.now, order_id=order["id"]))

    def link(self) -> None:
        """Merge the account of a customer without an id into a user's, once."""
        self.same(lambda ledger, _: ledger.link(self.users[3], "cid"))


@pytest.mark.parametrize("seed", range(6))
def test_an_archived_ledger_answers_as_a_whole_one(seed: int, postgres: str) -> None:
    """Whatever happened before, and whatever happens afterwards."""
    luck, url = random.Random(seed), copy_of_template(postgres)
    with Ledger(url, catalog()) as ledger:
        lives = Lives(luck, [ledger])
        lives.begin()
        for _ in range(40):
            lives.step()
    whole_url = copy_of(postgres, url)
    with Ledger(url, catalog()) as archived, Ledger(whole_url, catalog()) as whole:
        lives.ledgers = [archived, whole]
        for share in (0.6, 1.0):
            before = at("04-01") + (lives.now - at("04-01")) * share
            archive(url, before, step=luck.randrange(1, 4))
            compare(archived, whole, lives.now)
            for _ in range(15):
                lives.step()
            compare(archived, whole, lives.now)
        gone = count(archived, "credit_transactions_archive")
        assert gone > 10
        assert gone + count(archived, "credit_transactions") == count(whole, "credit_transactions")
