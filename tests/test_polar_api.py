"""The gateway over HTTP: what it sends, how it tries again, and how it tells of failures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from polarcredits.errors import ConfigError, InvalidInput, PolarCreditsError, PolarRefused, PolarUnavailable
from polarcredits.polar_api import PolarApi, open_polar
from polarcredits.polar_transport import HURRIED, PATIENT, Transport
from polarcredits.polar_values import CheckoutRow, Endpoint
from polarcredits.settings import load_settings
from tests.stand_in.server import TOKEN, PolarStandIn

STRANGE = "a/b?c#d é"
BAD_ANSWERS = ("500", "502", "504", "cut", "html", "garbage", "429")


@pytest.fixture
def polar() -> Iterator[PolarStandIn]:
    with PolarStandIn() as server:
        yield server


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def api(polar: PolarStandIn, slept: list[float]) -> Iterator[PolarApi]:
    transport = Transport(TOKEN, environment="sandbox", base_url=polar.url, sleep=slept.append)
    with PolarApi(transport) as api:
        yield api


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_a_read_is_tried_again(kind: str, polar: PolarStandIn, api: PolarApi) -> None:
    """Two bad answers, then a good one: the right result."""
    polar.state.add_customer("ann@example.com", "ann")
    polar.misbehave(kind, times=2)
    found = api.customer_of("ann")
    assert found is not None
    assert found.email == "ann@example.com"


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_a_server_that_stays_bad_is_unavailable(kind: str, polar: PolarStandIn, api: PolarApi) -> None:
    """Four attempts, then the contract's error with what was answered, and never the token."""
    polar.misbehave(kind, times=99)
    with pytest.raises(PolarUnavailable) as failure:
        api.customer_of("ann")
    assert failure.value.fields["attempts"] == 4
    assert len(polar.exchanges) == 4
    assert TOKEN not in failure.value.message


def test_an_answer_that_never_comes(polar: PolarStandIn, slept: list[float]) -> None:
    """A read timeout is tried again, within a bound."""
    transport = Transport(TOKEN, environment="sandbox", base_url=polar.url, sleep=slept.append)
    transport._client._client.timeout = httpx.Timeout(0.2)
    polar.misbehave("timeout", times=99)
    with PolarApi(transport) as api, pytest.raises(PolarUnavailable, match="did not answer in time"):
        api.customer_of("ann")


def test_a_closed_port_is_unavailable(slept: list[float]) -> None:
    """Nobody there at all."""
    transport = Transport(TOKEN, environment="sandbox", base_url="http://127.0.0.1:9", sleep=slept.append)
    with PolarApi(transport) as api, pytest.raises(PolarUnavailable, match="cannot be reached"):
        api.customer_of("ann")


@pytest.mark.parametrize(
    ("told", "waited"),
    [
        ("7", 7.0),
        (lambda: httpx_date(datetime.now(UTC) + timedelta(seconds=9)), 9.0),
        ("soon", None),
        ("-4", None),
    ],
)
def test_retry_after_is_obeyed(
    told: str | Callable[[], str],
    waited: float | None,
    polar: PolarStandIn,
    api: PolarApi,
    slept: list[float],
) -> None:
    """As seconds or as a date; anything else is a limit without a time."""
    polar.misbehave("429", retry_after=told if isinstance(told, str) else told())
    api.customer_of("ann")
    if waited is None:
        assert 0 < slept[0] <= 1
    else:
        assert slept[0] == pytest.approx(waited, abs=1.5)


def httpx_date(time: datetime) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT")


def test_a_wait_that_is_too_long_is_told(polar: PolarStandIn, api: PolarApi, slept: list[float]) -> None:
    """Nobody waits an hour for a checkout."""
    polar.misbehave("429", retry_after=3600)
    with pytest.raises(PolarUnavailable) as failure:
        api.customer_of("ann")
    assert failure.value.fields["retry_after"] == 3600
    assert slept == []
    assert PATIENT.call < 3600


def test_a_hurried_gateway_gives_up_early(polar: PolarStandIn) -> None:
    """Two attempts of a call, and nothing at all once its time is over."""
    brief = replace(HURRIED, whole=0.3)
    transport = Transport(TOKEN, environment="sandbox", base_url=polar.url, patience=brief)
    polar.misbehave("429", times=99, retry_after=0)
    with PolarApi(transport) as api:
        with pytest.raises(PolarUnavailable) as failure:
            api.customer_of("ann")
        assert failure.value.fields["attempts"] == 2
        time.sleep(0.3)
        sent = len(polar.exchanges)
        with pytest.raises(PolarUnavailable, match="takes too long"):
            api.customer_of("ann")
    assert len(polar.exchanges) == sent == 2


MADE = ("customer", "checkout", "endpoint")


def make_all(api: PolarApi, product: str) -> tuple[str, str, str]:
    return (
        api.create_customer(STRANGE, email="ann@example.com", name=None).id,
        api.open_checkout({"products": [product], "external_customer_id": STRANGE}).id,
        api.create_endpoint("https://example.com/hook", ["order.paid"]).id,
    )


@pytest.mark.parametrize("kind", ["500", "502", "504", "cut", "html", "garbage", "null", "list"])
@pytest.mark.parametrize("after", [True, False])
def test_nothing_is_made_twice(kind: str, after: bool, polar: PolarStandIn, api: PolarApi) -> None:
    """Whether the request had its effect before the answer went wrong, or not: one of each in the end."""
    product = polar.state.add_product("Pro")
    for path in ("customers", "checkouts", "endpoints"):
        polar.misbehave(kind, path=path, method="POST", after=after)
    unknown = kind in ("502", "504", "cut") and not after
    if unknown:
        for _ in MADE:
            with pytest.raises(PolarUnavailable, match="look again"):
                make_all(api, product)
    ids = make_all(api, product)
    assert [polar.count(each) for each in MADE] == [1, 2 if unknown else 1, 1]  # asked for twice, made twice
    assert [list(polar.state.objects[each])[-1] for each in MADE] == list(ids)
    assert polar.state.objects["customer"][ids[0]]["external_id"] == STRANGE


@pytest.mark.parametrize("kind", ["504", "cut"])
def test_a_late_effect_is_found(kind: str, polar: PolarStandIn) -> None:
    """What a proxy passes on after it gave up is looked for, and never sent again."""
    product = polar.state.add_product("Pro")
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            late = next(each for each in polar.exchanges if each.status != 201 and each.method == "POST")
            headers = {k: late.request_headers[k] for k in ("authorization", "polar-version", "content-type")}
            httpx.post(polar.url + late.target, content=late.request_body, headers=headers)

    calls: dict[str, Callable[[PolarApi], CheckoutRow | Endpoint]] = {
        "checkouts": lambda api: api.open_checkout({"products": [product]}),
        "endpoints": lambda api: api.create_endpoint("https://example.com/hook", ["order.paid"]),
    }
    for path, call in calls.items():
        polar.misbehave(kind, path=path, method="POST")
        with PolarApi(Transport(TOKEN, environment="sandbox", base_url=polar.url, sleep=sleep)) as api:
            assert call(api).url
        assert sum(pauses) > 0.5
        polar.exchanges.clear()
        pauses.clear()
    assert [polar.count(each) for each in MADE] == [0, 1, 1]


@pytest.mark.parametrize("after", [True, False])
def test_a_request_that_was_not_answered_in_time_is_not_sent_again(
    after: bool, polar: PolarStandIn, slept: list[float]
) -> None:
    """It may yet take effect: what it made is found, else the outcome is unknown."""
    transport = Transport(TOKEN, environment="sandbox", base_url=polar.url, sleep=slept.append)
    transport._client._client.timeout = httpx.Timeout(0.5)
    product = polar.state.add_product("Pro")
    polar.misbehave("timeout", path="checkouts", method="POST", after=after)
    with PolarApi(transport) as api:
        if after:
            assert api.open_checkout({"products": [product]}).status == "open"
        else:
            with pytest.raises(PolarUnavailable, match="did not answer in time"):
                api.open_checkout({"products": [product]})
    posts = [each for each in polar.exchanges if each.method == "POST"]
    assert len(posts) == 1
    assert polar.count("checkout") == int(after)


@pytest.mark.parametrize("user", [".", "..", "%2E%2E", "%2e", "..."])
def test_no_id_leads_elsewhere(user: str, polar: PolarStandIn, api: PolarApi) -> None:
    """Dots are resolved in addresses, so whoever is called so is found in the list."""
    polar.state.add_customer("eve@example.com", "eve")
    assert api.customer_of(user) is None
    made = api.create_customer(user, email="dot@example.com", name=None)
    found = api.customer_of(user)
    assert found is not None
    assert (found.id, found.external_id) == (made.id, user)
    assert [
        each for each in polar.exchanges if each.target.rstrip("/") in ("/v1", "/v1/customers/external")
    ] == []


@pytest.mark.parametrize("id", ["", ".", ".."])
def test_nothing_is_there_by_no_name(id: str, polar: PolarStandIn, api: PolarApi) -> None:
    """The list is not taken for one of its own objects."""
    assert api.customer(id) is None
    assert api.get("order", id) is None
    assert api.checkout(id) is None
    assert api.product(id) is None
    assert polar.exchanges == []


def test_an_answer_without_a_date(polar: PolarStandIn, api: PolarApi) -> None:
    """Nobody can say how old facts are; what is no fact is read all the same."""
    product = polar.state.add_product("Pro")
    polar.dated = False
    assert [each.id for each in api.products()] == [product]
    assert api.open_checkout({"products": [product]}).status == "open"
    page = api.first_products()
    with pytest.raises(PolarUnavailable, match="no Date header"):
        _ = page.as_of


@pytest.mark.parametrize("kind", ["unknown-values", "missing-fields", "extra-fields"])
def test_answers_may_change(kind: str, polar: PolarStandIn, api: PolarApi) -> None:
    """Unknown values, fields that are gone and fields that are new break no reading."""
    product = polar.state.add_product("Pro")
    polar.state.add_customer("ann@example.com", "ann")
    polar.misbehave(kind, times=99)
    assert [each.id for each in api.products()] == [product]
    assert api.product(product) is not None
    assert api.customer_of("ann") is not None
    assert api.open_checkout({"products": [product]}).url
    assert [len(page.rows) for page in api.rows("customer")] == [1]


def test_refusals_say_why(polar: PolarStandIn, api: PolarApi) -> None:
    """The status, the field and the reason; for the token, where to look."""
    with pytest.raises(PolarRefused, match=r"body\.products: Product does not exist") as refused:
        api.open_checkout({"products": ["00000000-0000-0000-0000-000000000000"]})
    assert refused.value.fields["status"] == 422
    polar.misbehave("redirect")
    with pytest.raises(PolarRefused, match="POLAR_BASE_URL"):
        api.customer_of("ann")
    wrong = Transport("polar_oat_wrong", environment="sandbox", base_url=polar.url)
    with PolarApi(wrong) as stranger, pytest.raises(PolarRefused, match="POLAR_ACCESS_TOKEN"):
        stranger.products()


def test_an_address_is_never_claimed(polar: PolarStandIn, api: PolarApi) -> None:
    """A taken e-mail is told with whose it is and what to do (§7.3); nothing is made."""
    nameless = polar.state.add_customer("ann@example.com")
    polar.state.add_customer("bob@example.com", "bob")
    with pytest.raises(InvalidInput, match=f"users link polar:{nameless['id']} ann"):
        api.create_customer("ann", email="Ann@example.com", name=None)
    with pytest.raises(InvalidInput, match="belongs to Polar's user 'bob'"):
        api.create_customer("ann", email="bob@example.com", name=None)
    assert polar.count("customer") == 2


def test_pages_are_read_to_the_end(polar: PolarStandIn, api: PolarApi) -> None:
    """All pages, each row once."""
    for number in range(250):
        polar.state.add_customer(f"{number}@example.com", f"user-{number}")
    rows = [row["id"] for page in api.rows("customer") for row in page.rows]
    assert len(rows) == len(set(rows)) == 250


@pytest.mark.parametrize("move", ["made", "gone"])
def test_pages_that_move_lose_nobody(move: str, polar: PolarStandIn, api: PolarApi) -> None:
    """While a list is read, rows come and go; whoever was there all the time is read."""
    made = [polar.state.add_customer(f"{n}@example.com", f"user-{n}")["id"] for n in range(250)]
    seen: set[str] = set()
    for number, page in enumerate(api.rows("customer")):
        seen |= {str(row["id"]) for row in page.rows}
        if number == 0:
            if move == "made":
                polar.state.add_customer("new@example.com", "new")
            else:
                polar.state.objects["customer"][made[0]]["deleted_at"] = polar.state.stamp()
    assert set(made) - {made[0]} <= seen


def test_as_of_is_polars_clock(polar: PolarStandIn, api: PolarApi) -> None:
    """The answer's Date, less the time that it took, less a second; never our own clock (§1.1)."""
    polar.state.clock = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
    began = time.monotonic()
    page = api.first_products()
    took = timedelta(seconds=time.monotonic() - began)
    assert (
        polar.state.clock - timedelta(seconds=1) - took
        <= page.as_of
        <= polar.state.clock - timedelta(seconds=1)
    )
    polar.delay = 0.4
    assert api.first_products().as_of < polar.state.clock - timedelta(seconds=1.35)


@pytest.mark.parametrize(
    ("environ", "setting"),
    [
        ({}, "POLAR_ACCESS_TOKEN"),
        ({"POLAR_ACCESS_TOKEN": "tökén"}, "POLAR_ACCESS_TOKEN"),
        ({"POLAR_ACCESS_TOKEN": "x", "POLAR_BASE_URL": "ftp://x"}, "POLAR_BASE_URL"),
        ({"POLAR_ACCESS_TOKEN": "x", "POLAR_BASE_URL": "http://[x"}, "POLAR_BASE_URL"),
    ],
)
def test_settings_that_cannot_work(environ: dict[str, str], setting: str, tmp_path: Any) -> None:
    """A missing token, one that is none, and an address that is none."""
    with pytest.raises(ConfigError) as failure:
        open_polar(load_settings(environ=environ, cwd=tmp_path))
    assert failure.value.fields["setting"] == setting


def test_every_failure_is_ours(polar: PolarStandIn, api: PolarApi) -> None:
    """No method lets an error of the SDK, of httpx or of JSON out."""
    calls: list[Callable[[], object]] = [
        api.products,
        api.endpoints,
        lambda: api.product("x"),
        lambda: list(api.rows("order")),
        lambda: list(api.newest("refund", datetime.now(UTC))),
        lambda: list(api.deliveries(datetime.now(UTC))),
        lambda: api.get("order", STRANGE),
        lambda: api.portal(user=STRANGE),
        lambda: api.billable("x"),
        lambda: api.checkout("x"),
        lambda: api.repair_endpoint("x", []),
    ]
    for kind in ("500", "html", "garbage", "null", "list", "empty", "redirect", "cut"):
        for call in calls:
            polar.misbehave(kind, times=4)
            told = ""
            try:
                call()
            except PolarCreditsError as failure:
                told = failure.message
            assert TOKEN not in told
            polar.behave()
