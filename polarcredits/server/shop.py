"""What the pages do with the ledger and with Polar, off the event loop and within bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import TypeVar

from polarcredits.checkouts import Contact, Wishes, offer_of, open_checkout, open_portal, success_page
from polarcredits.errors import InvalidInput, PolarRefused, UnknownUser
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.readings import known_of, linked_customers
from polarcredits.ledger.views import show_user
from polarcredits.polar_api import PolarApi, open_polar
from polarcredits.polar_transport import HURRIED
from polarcredits.polar_values import CheckoutRow, Product
from polarcredits.server.context import ServerContext
from polarcredits.server.limits import Gate
from polarcredits.server.links import Offered, links_of

T = TypeVar("T")
_LONGEST_ADDRESS = 254
_INVALID = 422


class EmailNeeded(InvalidInput):
    """Polar does not know the buyer yet, and neither the ledger nor the form has an e-mail address."""


class Shop:
    """Reads the ledger and asks Polar for the pages; most threads are left to others."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self.settings = context.settings
        self.ledger = context.ledger
        self.syncing = Ledger(
            context.settings.database_url,
            context.ledger.catalog,
            actor="sync",
            database=context.ledger.database,
        )
        self.links = links_of(context.settings)
        self._reading = Gate(inside=2, waiting=64)
        self._asking = Gate(inside=3, waiting=24)

    @property
    def sells(self) -> bool:
        """Whether buttons work: what they sell is signed, and Polar takes the money."""
        return self.links is not None and self.settings.access_token is not None

    def now(self) -> datetime:
        """Return the time."""
        return self._context.now()

    async def read(self, work: Callable[[], T]) -> T:
        """Run what reads the ledger. Raises TooMany, and what *work* raises."""
        async with self._reading.passing():
            return await self._context.with_database(work)

    async def ask(self, work: Callable[[PolarApi], T]) -> T:
        """Run what asks Polar within some seconds. Raises TooMany, ConfigError, and what *work* does."""

        def asked() -> T:
            with open_polar(self.settings, patience=HURRIED) as polar:
                return work(polar)

        async with self._asking.passing():
            return await self._context.with_polar(asked)

    async def products(self) -> Mapping[str, Product]:
        """Return the products of the catalog that Polar has."""
        wanted = set(self.ledger.catalog.product_ids)
        found = await self.ask(lambda polar: polar.products())
        return {product.id: product for product in found if product.id in wanted}

    async def sell(self, offered: Offered, email: str | None) -> str:
        """Open a checkout and return its address. Raises EmailNeeded and what `open_checkout` raises."""
        named = {"plan": None, "pack": None, offered.kind: offered.name}
        offer = offer_of(self.ledger.catalog, plan=named["plan"], pack=named["pack"])
        pricing = f"{self.settings.public_url}/pricing" if self.settings.public_url else None
        wishes = Wishes(
            success_url=success_page(self.settings),
            return_url=pricing if offered.user is None else None,
        )
        contact = partial(self._contact, offered.user, email)
        customers = partial(linked_customers, self.ledger, offered.user or "")

        def work(polar: PolarApi) -> CheckoutRow:
            return open_checkout(
                polar, offer, user=offered.user, contact=contact, wishes=wishes, customers=customers
            )

        try:
            opened = await self.ask(work)
        except PolarRefused as refusal:
            if email is not None and refusal.fields.get("status") == _INVALID:
                raise EmailNeeded("Polar does not take the e-mail address.", user=offered.user) from refusal
            raise
        return opened.url

    def _contact(self, user: str | None, given: str | None) -> Contact:
        """Return how the buyer is reached; an address that the ledger knows is not the form's to change."""
        if user is None:
            return Contact()
        try:
            known = show_user(self.ledger, user)
        except UnknownUser:
            email, name = None, None
        else:
            email, name = known.email, known.name
        email = email or given
        if email is None:
            raise EmailNeeded("The buyer's e-mail address is not known.", user=user)
        return Contact(email=email, name=name)

    async def portal(self, user: str) -> str:
        """Open a portal session for a user and return its address. Raises NotFound where Polar has nobody."""
        session = await self.ask(
            lambda polar: open_portal(polar, user, customers=lambda: known_of(self.ledger, user).customers)
        )
        return session.url


def email_of(text: str) -> str | None:
    """Return what may be an e-mail address, None for an empty field. Raises EmailNeeded."""
    address = text.strip()
    if not address:
        return None
    name, _, host = address.partition("@")
    if not name or not host or "@" in host or " " in address or not address.isprintable():
        raise EmailNeeded("That is no e-mail address.")
    if len(address) > _LONGEST_ADDRESS:
        raise EmailNeeded("That e-mail address is too long.")
    return address
