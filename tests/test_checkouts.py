"""Following a checkout: every way of it ends, and in time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from polarcredits.checkouts import follow, wait_for_order
from polarcredits.errors import PolarRefused, PolarUnavailable
from polarcredits.polar_api import PolarApi
from polarcredits.polar_transport import Transport
from polarcredits.polar_values import CheckoutRow
from tests.stand_in.server import TOKEN, PolarStandIn

NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)


class Clock:
    """A clock that only waiting moves on."""

    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> datetime:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=max(60 * seconds, 1))


@pytest.fixture
def polar() -> Iterator[PolarStandIn]:
    with PolarStandIn(now=NOW) as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def api(polar: PolarStandIn, clock: Clock) -> Iterator[PolarApi]:
    with PolarApi(
        Transport(TOKEN, environment="sandbox", base_url=polar.url, sleep=lambda seconds: None)
    ) as api:
        yield api


def opened(polar: PolarStandIn, api: PolarApi, **fields: object) -> CheckoutRow:
    made = api.open_checkout({"products": [polar.state.add_product("Pro")]})
    polar.state.objects["checkout"][made.id] |= fields
    found = api.checkout(made.id)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("status", "minutes"), [("open", 0), ("confirmed", 5), ("brand_new", 5), ("succeeded", -60)]
)
def test_waiting_ends_with_the_checkout(
    status: str, minutes: int, polar: PolarStandIn, api: PolarApi, clock: Clock
) -> None:
    """At its end while it is open; a payment under way has some minutes more, whatever it is called."""
    ends = NOW + timedelta(hours=1)
    known = "open" if status == "brand_new" else status
    held = opened(polar, api, status=known, expires_at=ends.isoformat().replace("+00:00", "Z"))
    if known != status:
        polar.misbehave("unknown-values", times=999)
    assert follow(api, held, sleep=clock.sleep, now=clock.now).status == status
    late = clock.time - ends - timedelta(minutes=minutes)
    assert timedelta(0) <= late <= timedelta(minutes=2, seconds=1)


def test_a_checkout_without_an_end_has_a_day(polar: PolarStandIn, api: PolarApi, clock: Clock) -> None:
    """Nobody waits for ever."""
    held = opened(polar, api, status="confirmed")
    endless = CheckoutRow(
        id=held.id, url=held.url, status="confirmed", expires_at=None, customer_id=None, metadata={}
    )
    polar.state.objects["checkout"][held.id]["expires_at"] = "3000-01-01T00:00:00Z"
    assert follow(api, endless, sleep=clock.sleep, now=clock.now).status == "confirmed"
    assert timedelta(hours=24) < clock.time - NOW < timedelta(hours=24, minutes=10)


def test_a_checkout_that_is_gone_ends_the_waiting(polar: PolarStandIn, api: PolarApi, clock: Clock) -> None:
    """It cannot be paid any more."""
    held = opened(polar, api)
    polar.state.objects["checkout"].clear()
    with pytest.raises(PolarRefused, match="no longer"):
        follow(api, held, sleep=clock.sleep, now=clock.now)
    assert clock.time - NOW < timedelta(minutes=5)


def test_polar_may_be_away_meanwhile(polar: PolarStandIn, api: PolarApi, clock: Clock) -> None:
    """Bad answers are borne until the end; there they are told."""
    held = opened(polar, api)
    polar.state.objects["checkout"][held.id]["status"] = "succeeded"
    polar.misbehave("500", times=4)
    assert follow(api, held, sleep=clock.sleep, now=clock.now).status == "succeeded"
    clock.time = NOW + timedelta(hours=23, minutes=59)
    polar.misbehave("500", times=99)
    with pytest.raises(PolarUnavailable):
        follow(api, held, sleep=clock.sleep, now=clock.now)


def test_an_order_is_waited_for(polar: PolarStandIn, api: PolarApi) -> None:
    """Until it is shown, and not longer than a minute."""
    held = opened(polar, api)
    waited: list[float] = []
    assert not wait_for_order(api, held, sleep=waited.append)
    assert sum(waited) == pytest.approx(60, abs=5)

    def pay_at_last(seconds: float) -> None:
        if len(waited) == 35:
            polar.state.pay(held.id)
        waited.append(seconds)

    assert wait_for_order(api, held, sleep=pay_at_last)
    assert len(waited) == 36
