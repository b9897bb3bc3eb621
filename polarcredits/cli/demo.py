"""`polarcredits demo`: the whole story, offline, on a database of its own."""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polarcredits.cli import context
from polarcredits.cli.output import emit, number, say, when

if TYPE_CHECKING:
    from polarcredits.ledger.ledger import Ledger
    from polarcredits.webhooks.inbox import Inbox

_SECRET = "whsec_demonstration_only_no_endpoint_has_this_secret"
_PRODUCT, _PACK = "demo-product-pro", "demo-product-pack"
_CATALOG = f"""
[plans.free]
credits = 1000
interval = "lifetime"
[plans.pro]
credits = 5000
interval = "month"
product_ids = ["{_PRODUCT}"]
[packs.small]
credits = 1000
product_ids = ["{_PACK}"]
"""


def demo(
    keep: Annotated[bool, typer.Option(help="Keep the database, and say where it is.")] = False,
) -> None:
    """Run a customer's life offline, and say each step. Example: polarcredits demo"""
    from polarcredits.ledger.ledger import Ledger
    from polarcredits.plans import parse_catalog
    from polarcredits.webhooks.inbox import Inbox

    folder = Path(tempfile.mkdtemp(prefix="polarcredits-demo-"))
    url = f"sqlite:///{folder / 'demo.db'}"
    try:
        catalog = parse_catalog(_CATALOG, pro_product_id=None)
        with Ledger(url, catalog, actor="demo") as ledger:
            steps = _Tale(ledger, Inbox(ledger, environment="sandbox", secrets=[_SECRET])).tell()
    finally:
        if not keep:
            shutil.rmtree(folder)
    document = {"steps": steps, "database": url if keep else None}
    emit(document, lambda: _epilogue(url if keep else None))


def _epilogue(url: str | None) -> None:
    say("")
    if url:
        say(f"The database is kept: polarcredits --database {url} credits explain ada")
    else:
        say("Now with your own: polarcredits users add alice, then polarcredits --help")


class _Tale:
    """Ada's first months, told while they happen."""

    def __init__(self, ledger: Ledger, inbox: Inbox) -> None:
        from polarcredits.webhooks.fixtures import Story

        self.ledger = ledger
        self.inbox = inbox
        self.story = Story("ada", at=datetime(2026, 1, 31, 9, tzinfo=UTC), name="Ada")
        self.steps: list[dict[str, Any]] = []

    def tell(self) -> list[dict[str, Any]]:
        from polarcredits.errors import InsufficientCredits
        from polarcredits.ledger.verify import verify
        from polarcredits.refill import refill

        story, ledger = self.story, self.ledger
        bought = story.purchase(_PRODUCT)
        self.deliver(bought)
        self.step("Ada buys Pro: Polar's signed events arrive, and her credits too.")
        self.deliver(bought)
        self.step("Polar sends all of them again. Nothing is granted twice.")
        receipt = ledger.deduct("ada", 1200, operation="render", at=self.now())
        self.step("Her API calls spend 1,200, the credits that expire soonest first.")
        ledger.reverse(receipt.transaction.id, reason="upstream failed", at=self.now())
        ledger.deduct("ada", 700, operation="render", at=self.now())
        self.step("One batch failed and is given back; a smaller one goes through.")
        with_hold = ledger.hold("ada", 300, ttl=timedelta(minutes=5), at=self.now())
        ledger.holds.capture(with_hold.id, 180, at=self.now())
        self.step("A job of unknown cost holds 300, then takes 180.")
        self.deliver(story.renewal(datetime(2026, 2, 28, 9, tzinfo=UTC)))
        self.step("The 28th ends February: the old rest expires, 5,000 come.")
        self.deliver(story.pack(_PACK, datetime(2026, 3, 3, 12, tzinfo=UTC)))
        self.step("She buys a pack of 1,000, which never expires.")
        self.deliver(story.refund(500, datetime(2026, 3, 5, 8, tzinfo=UTC)))
        self.step("Half the pack's price is refunded: half of its credits go.")
        self.deliver(story.cancel_at_period_end(datetime(2026, 3, 10, 8, tzinfo=UTC)))
        self.step("She cancels. Pro stays until the end of what she paid for.")
        after = datetime(2026, 4, 1, tzinfo=UTC)
        refill(ledger, at=after)
        story.now = after
        self.step("April: cron's `polarcredits refill` has written down the end.")
        try:
            ledger.deduct("ada", 100_000, at=self.now())
        except InsufficientCredits as refusal:
            self.step(
                f"A call for {number(refusal.required)} is refused: she has {number(refusal.available)}."
            )
        found = verify(ledger)
        self.step(f"`ledger verify`: {found.transactions} entries, {len(found.problems)} problems.")
        return self.steps

    def now(self) -> datetime:
        self.story.now += timedelta(minutes=1)
        return self.story.now

    def deliver(self, payloads: list[dict[str, Any]]) -> None:
        import json

        from polarcredits.webhooks.fixtures import deliver, make_id
        from polarcredits.webhooks.reading import read_elements

        for payload in payloads:
            id = make_id("event", json.dumps(payload, sort_keys=True))
            stored = deliver(payload, id=id, secret=_SECRET, at=self.story.now)
            for element in read_elements(json.dumps(stored).encode(), "demo"):
                self.inbox.ingest(element, now=self.story.now)

    def step(self, text: str) -> None:
        from polarcredits.ledger.views import statement

        told = statement(self.ledger, "ada", self.story.now)
        step = {
            "at": self.story.now,
            "text": text,
            "plan": told.plan,
            "balance": told.balance.balance,
        }
        self.steps.append(step)
        if not context.options.json:
            say(f"{when(self.story.now)[:10]}  {text}")
            say(f"            plan {told.plan}, balance {number(told.balance.balance)}")
