"""Checkouts: a link that sells a plan or a pack to the right customer (docs/rules.md §7.3)."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from polarcredits.errors import ConfigError, InvalidInput, NotFound, PolarRefused, PolarUnavailable
from polarcredits.plans import Catalog
from polarcredits.polar_api import PolarApi
from polarcredits.polar_values import CheckoutRow, CustomerRow, PortalSession, SubscriptionSummary
from polarcredits.settings import Settings
from polarcredits.userids import PLACEHOLDER

if TYPE_CHECKING:
    from polar.v2026_10.inputs import CheckoutCreate

ENDED = frozenset({"succeeded", "failed", "expired"})
_POLL = 2.0
_LIFE = timedelta(hours=24)
"""How long a checkout may be paid that does not say so itself."""
_UNDER_WAY = timedelta(minutes=5)
"""How long after that a payment that was begun may take."""
_LATE = 60.0
"""Seconds that Polar may take to show the order of a checkout that succeeded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What is sold: a plan or a pack, as some of Polar's products."""

    kind: str
    name: str
    product_ids: tuple[str, ...]
    recurring: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """Who buys, as far as that is known."""

    email: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What else a checkout is to have."""

    success_url: str | None = None
    return_url: str | None = None
    discount_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


class AlreadySubscribed(InvalidInput):
    """The buyer has a subscription, and Polar allows one: it is changed in the portal."""


def success_page(settings: Settings) -> str | None:
    """Return where a buyer lands who has paid, with Polar's placeholder in it; None without that page."""
    if settings.public_url is None or settings.secret_key is None:
        return None
    return f"{settings.public_url}/checkout/success?checkout_id={{CHECKOUT_ID}}"


def offer_of(catalog: Catalog, *, plan: str | None, pack: str | None) -> Offer:
    """Return what a plan's or pack's name sells. Raises NotFound, InvalidInput and ConfigError."""
    if (plan is None) == (pack is None):
        raise InvalidInput("Name either a plan or a pack.")
    if pack is not None:
        sold = catalog.pack(pack)
        offer = Offer(kind="pack", name=pack, product_ids=sold.product_ids, recurring=False)
    else:
        named = catalog.plan(plan or "")
        recurring = named.interval != "lifetime"
        offer = Offer(kind="plan", name=named.name, product_ids=named.product_ids, recurring=recurring)
    if not offer.product_ids:
        if offer.name == catalog.default_plan:
            raise InvalidInput(f"Plan {offer.name} is not sold: everybody has it.")
        setting = f"{offer.kind}s.{offer.name}.product_ids"
        also = " or POLAR_PRO_PRODUCT_ID" if offer.name == "pro" else ""
        raise ConfigError(
            f"No product is set for {offer.kind} {offer.name}: {setting} in polarcredits.toml{also}.",
            setting=setting,
        )
    return offer


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise InvalidInput where Polar would refuse *metadata*, or it would name another owner (§7.3)."""
    if "user_id" in metadata:
        raise InvalidInput("--metadata may not set user_id: it says who owns what is bought. Use --user.")
    if len(metadata) > 48:
        raise InvalidInput("--metadata: at most 48 keys.")
    for key, value in metadata.items():
        if len(key) > 40 or not 0 < len(value) <= 500:
            raise InvalidInput(f"--metadata {key[:40]}: a key has 1 to 40 characters, a value 1 to 500.")


def open_checkout(
    polar: PolarApi,
    offer: Offer,
    *,
    user: str | None,
    contact: Callable[[], Contact],
    wishes: Wishes,
    customers: Callable[[], Iterable[str]],
) -> CheckoutRow:
    """Open a checkout; the customer of *user* exists before it does, and is its buyer.

    Where nobody bears the user's id, one of *customers* buys: those that were linked to the user.
    *contact* is asked only where the customer has to be made, or there is no *user*. A *user* that is
    the account of a nameless customer buys as that customer. Raises InvalidInput where the buyer
    would be refused (AlreadySubscribed), and ConfigError for products that cannot be sold.
    """
    check_metadata(wishes.metadata)
    body: CheckoutCreate = {"products": _on_sale(polar, offer)}
    metadata: dict[str, str | int | float | bool] = dict(wishes.metadata)
    if user is not None and user.startswith(PLACEHOLDER):
        nameless = user.removeprefix(PLACEHOLDER)
        body["customer_id"] = nameless
        held = polar.billable(nameless) if offer.recurring else []
    elif user is not None:
        customer = polar.customer_of(user) or _linked(polar, customers())
        customer = customer or _new_customer(polar, user, contact())
        if customer.external_id == user:
            body["external_customer_id"] = user
        else:
            body["customer_id"] = customer.id
        metadata["user_id"] = user
        held = polar.billable(customer.id) if offer.recurring else []
    else:
        buyer = contact()
        if buyer.email:
            body["customer_email"] = buyer.email
        found = polar.customer_by_email(buyer.email) if buyer.email and offer.recurring else None
        held = polar.billable(found.id) if found else []
    upgraded = _upgraded(polar, held, offer, user)
    if upgraded is not None:
        body["subscription_id"] = upgraded
    if wishes.success_url:
        body["success_url"] = wishes.success_url
    if wishes.return_url:
        body["return_url"] = wishes.return_url
    if wishes.discount_id:
        body["discount_id"] = wishes.discount_id
    return polar.open_checkout({**body, "metadata": metadata})


def _linked(polar: PolarApi, customers: Iterable[str]) -> CustomerRow | None:
    """Return the first of *customers* that Polar has, and that bears nobody else's id."""
    for id in customers:
        customer = polar.customer(id)
        if customer is not None and customer.external_id is None:
            return customer
    return None


def _new_customer(polar: PolarApi, user: str, buyer: Contact) -> CustomerRow:
    if not buyer.email:
        raise InvalidInput(
            f"Polar has no customer for {user!r} yet, and needs an e-mail address to make one: give --email.",
            user=user,
        )
    return polar.create_customer(user, email=buyer.email, name=buyer.name)


def _on_sale(polar: PolarApi, offer: Offer) -> list[str]:
    """Return the offer's products that can be bought."""
    wrong: list[str] = []
    sold: list[str] = []
    for id in offer.product_ids:
        product = polar.product(id)
        if product is None:
            wrong.append(f"{id} is not there")
        elif product.archived:
            wrong.append(f"{id} is archived")
        elif offer.recurring and product.interval is None:
            wrong.append(f"{id} is sold once, not by subscription")
        elif offer.kind == "pack" and product.interval is not None:
            wrong.append(f"{id} is a subscription, not sold once")
        else:
            sold.append(id)
    if not sold:
        raise ConfigError(
            f"Polar cannot sell {offer.kind} {offer.name}: {'; '.join(wrong)}. See: polarcredits plans diff",
            setting=f"{offer.kind}s.{offer.name}.product_ids",
        )
    return sold


def _upgraded(
    polar: PolarApi, held: Iterable[SubscriptionSummary], offer: Offer, user: str | None
) -> str | None:
    """Return the free subscription that is upgraded; refuse where Polar would refuse the buyer."""
    free: str | None = None
    for subscription in held:
        if subscription.amount_cents == 0 and subscription.product_id not in offer.product_ids:
            free = subscription.id
        elif not polar.allows_several_subscriptions():
            whose = user or "The buyer"
            portal = f" Change it in the portal: polarcredits portal {shlex.quote(user)}" if user else ""
            raise AlreadySubscribed(
                f"{whose} is subscribed already ({subscription.status}, {subscription.id}), and Polar "
                f"allows one subscription.{portal}",
                user=user,
                subscription=subscription.id,
            )
    return free


def follow(
    polar: PolarApi,
    checkout: CheckoutRow,
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> CheckoutRow:
    """Wait until a checkout has succeeded, failed or expired, and return it so.

    One that has expired by its date is returned as it is: at once while it is open, else after some
    minutes, for a payment may be under way. Polar may be away for a while meanwhile; raises
    PolarUnavailable if it still is at the end, and PolarRefused if the checkout is no longer there.
    """
    expires = checkout.expires_at or now() + _LIFE
    failure: PolarUnavailable | None = None
    while checkout.status not in ENDED:
        sleep(_POLL)
        over = now()
        try:
            found = polar.checkout(checkout.id)
        except PolarUnavailable as error:
            failure = error
        else:
            if found is None:
                raise PolarRefused("Polar no longer has the checkout, so it cannot be paid.", id=checkout.id)
            checkout, failure = found, None
        if over > expires + (timedelta(0) if checkout.status == "open" else _UNDER_WAY):
            if failure is not None:
                raise failure
            break
    return checkout


def has_order(polar: PolarApi, checkout: CheckoutRow) -> bool:
    """Say whether Polar shows the order of a checkout that succeeded."""
    return any(page.rows for page in polar.rows("order", checkout_id=checkout.id))


def wait_for_order(
    polar: PolarApi, checkout: CheckoutRow, *, sleep: Callable[[float], None] = time.sleep
) -> bool:
    """Wait until Polar shows the order of a checkout that succeeded; False if it takes too long."""
    for _ in range(int(_LATE / _POLL)):
        if has_order(polar, checkout):
            return True
        sleep(_POLL)
    return False


def open_portal(
    polar: PolarApi, user: str, *, customers: Callable[[], Iterable[str]], return_url: str | None = None
) -> PortalSession:
    """Open a portal session by external id, else for the first of *customers* that Polar has.

    *customers* are those that the ledger knows to be the user's. Raises NotFound if there is none.
    """
    if not user.startswith(PLACEHOLDER) and polar.customer_of(user) is not None:
        return polar.portal(user=user, return_url=return_url)
    for customer in customers():
        if polar.get("customer", customer) is not None:
            return polar.portal(customer=customer, return_url=return_url)
    raise NotFound(
        f"Polar has no customer for {user!r}. They get one with: "
        f"polarcredits checkout --plan pro --user {shlex.quote(user)}",
        user=user,
    )
