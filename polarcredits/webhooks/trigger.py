"""Realistic sequences of events for development: what `webhooks trigger` tells.

A sequence goes on from the subscription that the inbox knows of the user, else what must have come
before it is told too, dated a month back.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from polarcredits.errors import ConfigError, InvalidInput
from polarcredits.periods import format_time, parse_time
from polarcredits.plans import Catalog, Plan
from polarcredits.valuation import DAYS
from polarcredits.webhooks.fixtures import Payload, Story

_TRIAL = timedelta(days=7)
_BEFORE = timedelta(days=20)


def _renewal(story: Story, now: datetime) -> list[Payload]:
    _end_period(story, now)
    return story.renewal(now)


def _failed_renewal(story: Story, now: datetime) -> list[Payload]:
    _end_period(story, now)
    return story.past_due(now)


def _recovery(story: Story, now: datetime) -> list[Payload]:
    if story.subscription and story.subscription["status"] == "past_due":
        return story.recover(now)
    events = _failed_renewal(story, now - timedelta(hours=1))
    return events + story.recover(now)


def _uncancel(story: Story, now: datetime) -> list[Payload]:
    if story.subscription and story.subscription["cancel_at_period_end"]:
        return story.uncancel(now)
    return story.cancel_at_period_end(now - timedelta(hours=1)) + story.uncancel(now)


def _resume(story: Story, now: datetime) -> list[Payload]:
    if story.subscription and story.subscription["status"] == "paused":
        return story.resume(now)
    return story.pause(now - timedelta(hours=1)) + story.resume(now)


_CHANGES: Mapping[str, Callable[[Story, datetime], list[Payload]]] = {
    "renewal": _renewal,
    "failed-renewal": _failed_renewal,
    "recovery": _recovery,
    "cancel": lambda story, now: story.cancel_at_period_end(now),
    "uncancel": _uncancel,
    "revoke": lambda story, now: story.revoke(now),
    "pause": lambda story, now: story.pause(now),
    "resume": _resume,
    "refund": lambda story, now: story.refund(at=now),
    "customer-deleted": lambda story, now: story.customer_deleted(now),
}
_MOVES = ("upgrade", "downgrade")
_PURCHASES = ("purchase", "trial", "pack")
SEQUENCES = (*_PURCHASES, *_CHANGES, *_MOVES)
"""What can be triggered."""


def tell(
    name: str,
    catalog: Catalog,
    *,
    user: str,
    plan: str | None,
    known: Iterable[Payload],
    now: datetime,
) -> list[Payload]:
    """Return the events of the sequence *name* for *user*; *known* are their events so far, newest first.

    Raises InvalidInput for a name that is none, ConfigError where nothing is sold.
    """
    name = name.replace("_", "-")
    if name not in SEQUENCES:
        raise InvalidInput(f"Nothing is called {name!r}; there are {', '.join(SEQUENCES)}.")
    story = _so_far(known, user, now)
    if name == "pack":
        return story.pack(_pack_product(catalog), now)
    if name in _MOVES:
        return _move(story, catalog, plan, now, up=name == "upgrade")
    product = _plan_product(catalog, plan)
    if name in ("purchase", "trial"):
        return story.purchase(product, now, trial=_TRIAL if name == "trial" else None)
    before = [] if story.subscription else story.purchase(product, now - _BEFORE)
    return before + _CHANGES[name](story, now)


def _move(story: Story, catalog: Catalog, to: str | None, now: datetime, *, up: bool) -> list[Payload]:
    """Change to plan *to*, else to the next greater or lesser one; a greater one is charged for at once."""
    sold = sorted((each for each in catalog.plans if each.product_ids), key=_daily)
    ranks = {id: rank for rank, each in enumerate(sold) for id in each.product_ids}
    wanted = next((rank for rank, each in enumerate(sold) if each.name == to), None)
    if to is not None and wanted is None:
        _plan_product(catalog, to)
    step = 1 if up else -1
    if story.subscription:
        held = ranks.get(story.subscription["product_id"], -1)
    else:
        held = (0 if up else len(sold) - 1) if wanted is None else wanted - step
    target = held + step if wanted is None else wanted
    if not (held in range(len(sold)) and target in range(len(sold)) and (target - held) * step > 0):
        raise ConfigError(
            f"There is no {'greater' if up else 'lesser'} plan to change to: set product_ids of two plans "
            "under [plans.NAME] in polarcredits.toml.",
            setting="plans",
        )
    before = [] if story.subscription else story.purchase(sold[held].product_ids[0], now - _BEFORE)
    changed = story.plan_change(sold[target].product_ids[0], now, charge=1000 if up else None)
    return before + changed


def _daily(plan: Plan) -> float:
    return plan.credits / DAYS.get(plan.interval, 36_500)


def _so_far(known: Iterable[Payload], user: str, now: datetime) -> Story:
    """Return the user's story so far, with the subscription that has not ended; else a new one."""
    seed = uuid.uuid4().hex
    customer, subscriptions, orders = _objects(known)
    if customer is None:
        return Story(user, at=now - _BEFORE, metadata={"user_id": user}, seed=seed)
    ongoing = next((each for each in subscriptions if not each.get("ended_at")), None)
    mine = [each for each in reversed(orders) if ongoing and each.get("subscription_id") == ongoing["id"]]
    story = Story.going_on(customer, subscription=ongoing, orders=mine, at=now, seed=seed)
    story.metadata["user_id"] = user
    return story


def _objects(known: Iterable[Payload]) -> tuple[Payload | None, list[Payload], list[Payload]]:
    """Return the newest customer, and every subscription and order as last told, the newest first."""
    customer: Payload | None = None
    found: dict[str, dict[str, Payload]] = {"subscription": {}, "order": {}}
    for payload in sorted(known, key=_told_at, reverse=True):
        noun, data = str(payload.get("type")).partition(".")[0], payload.get("data")
        if not isinstance(data, dict):
            continue
        inner = data if noun == "customer" else data.get("customer")
        if customer is None and isinstance(inner, dict) and inner.get("external_id"):
            customer = inner
        if noun in found and isinstance(data.get("id"), str):
            found[noun].setdefault(data["id"], {k: v for k, v in data.items() if k != "customer"})
    return customer, list(found["subscription"].values()), list(found["order"].values())


def _told_at(payload: Mapping[str, Any]) -> datetime:
    try:
        return parse_time(str(payload.get("timestamp")))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)


def _end_period(story: Story, now: datetime) -> None:
    """Let the present period end now, so that the next can begin."""
    held = story.subscription
    if held is not None and parse_time(held["current_period_end"]) != now:
        held["current_period_end"] = format_time(now)


def _plan_product(catalog: Catalog, name: str | None) -> str:
    sold = [catalog.plan(name)] if name else [plan for plan in catalog.plans if plan.product_ids]
    for plan in sold:
        if plan.product_ids:
            return plan.product_ids[0]
    raise ConfigError(
        "No product is set for a plan: set POLAR_PRO_PRODUCT_ID, or product_ids in polarcredits.toml.",
        setting="POLAR_PRO_PRODUCT_ID",
    )


def _pack_product(catalog: Catalog) -> str:
    for pack in catalog.packs:
        if pack.product_ids:
            return pack.product_ids[0]
    raise ConfigError(
        "No pack with product_ids is set: add one under [packs.NAME] in polarcredits.toml.", setting="packs"
    )
