"""The pages that a buyer meets: prices, what became of a purchase, and a user's own account."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from polarcredits.checkouts import AlreadySubscribed
from polarcredits.errors import (
    ConfigError,
    DatabaseError,
    NotFound,
    PolarCreditsError,
    PolarRefused,
    PolarUnavailable,
)
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.values import Transaction
from polarcredits.ledger.views import Statement, User, history, list_payments, show_user, statement
from polarcredits.server import presentation
from polarcredits.server.context import ServerContext
from polarcredits.server.forms import read_form, refuse_foreign
from polarcredits.server.limits import Throttle, TooMany, visitor
from polarcredits.server.links import Links, Named, Offered
from polarcredits.server.prices import Prices
from polarcredits.server.purchases import Purchases
from polarcredits.server.refusals import PageOff, Refusal, refusal_of
from polarcredits.server.rendering import Renderer
from polarcredits.server.shop import EmailNeeded, Shop, email_of

_CHECKOUT_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_FORM_LIFE = timedelta(hours=24)
_ENTRIES = 20
_PAYMENTS = 10
_LOOKS = ((10, 2), (20, 5), (30, 10))
"""Until so many looks at a purchase, the page looks again after so many seconds: three minutes in all."""
_log = logging.getLogger("polarcredits.pages")

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a user's own page shows, all of one instant."""

    told: Statement
    user: User
    entries: list[Transaction]
    payments: list[dict[str, Any]]


def page_routes(context: ServerContext) -> list[Route]:
    """Return the routes of the pages. Raises ConfigError where POLARCREDITS_SECRET_KEY is too weak."""
    pages = _Pages(context)
    return [
        Route("/pricing", pages.answering(pages.pricing)),
        Route("/checkout", pages.answering(pages.buy), methods=["POST"]),
        Route("/checkout/success", pages.answering(pages.success)),
        Route("/billing/{token}", pages.answering(pages.billing)),
        Route("/billing/{token}/portal", pages.answering(pages.portal), methods=["POST"]),
    ]


class _Pages:
    def __init__(self, context: ServerContext) -> None:
        self.shop = Shop(context)
        self.render = Renderer(context.settings)
        self.prices = Prices(self.shop.products, context.now)
        self.purchases = Purchases(self.shop, Throttle(each=60, together=120, clock=context.now))
        self.presses = Throttle(each=10, together=60, clock=context.now)
        """Buttons that make something at Polar."""

    def answering(self, handler: Handler) -> Handler:
        """Return *handler* with its expected failures told as pages."""

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except PolarCreditsError as error:
                return self.refused(request, error)

        return answer

    def refusal(self, error: PolarCreditsError) -> Refusal:
        """Return what to tell of a failure, and let whoever runs the server know of one that is theirs."""
        refusal = refusal_of(error)
        if refusal.status >= 500:
            _log.warning("%s: %s", error.code, error.message)
        return refusal

    def refused(self, request: Request, error: PolarCreditsError) -> Response:
        """Return the page for a failure."""
        refusal = self.refusal(error)
        return self.render.page(
            request,
            "message.html",
            status=refusal.status,
            headers=_retry(refusal),
            title=refusal.title,
            text=refusal.text,
        )

    @property
    def links(self) -> Links:
        """The signed links. Raises PageOff without a key."""
        if self.shop.links is None:
            raise PageOff("POLARCREDITS_SECRET_KEY is not set.")
        return self.shop.links

    async def pricing(self, request: Request) -> Response:
        """Show what is sold; `?user=` takes a signed link's token and nothing else."""
        shop, token = self.shop, request.query_params.get("user")
        named = self.links.read_user(token, shop.now()) if token is not None else None
        told = await shop.read(lambda: statement(shop.ledger, named.user)) if named else None
        known = await self.prices.known() if shop.settings.access_token else None
        cards = presentation.cards(shop.ledger.catalog, known, told.plan if told else None)
        closed = told is not None and told.status == "closed"
        return self.render.page(
            request,
            "pricing.html",
            public=named is None,
            offers=[(card, self._offer(card, named, closed)) for card in cards],
            told=told,
            token=token,
            prices=known is not None,
        )

    def _offer(self, card: presentation.Card, named: Named | None, closed: bool) -> str | None:
        """Return the token that a card's button sends, None for a card without a button."""
        if not self.shop.sells or not card.buyable or card.current or closed:
            return None
        until = named.expires_at if named else self.shop.now() + _FORM_LIFE
        user = named.user if named else None
        return self.links.offer(Offered(kind=card.kind, name=card.name, user=user, expires_at=until))

    async def buy(self, request: Request) -> Response:
        """Open a checkout for what a form's token offers, and send the browser there."""
        links = self.links
        refuse_foreign(request, self.shop.settings.public_url)
        form = await read_form(request)
        token = form.get("offer", "")
        offered = links.read_offer(token, self.shop.now())
        self.presses.take(_client(request))
        try:
            url = await self.shop.sell(offered, email_of(form.get("email", "")))
        except EmailNeeded:
            given = form.get("email", "")
            return self.render.page(request, "email.html", status=422, offer=token, given=given)
        except AlreadySubscribed:
            back = links.user(offered.user, offered.expires_at) if offered.user else None
            return self.render.page(request, "subscribed.html", status=409, token=back)
        return self.render.leave(request, url, what="the checkout")

    async def success(self, request: Request) -> Response:
        """Say how far a purchase is, and look again by itself until its credits are there."""
        if self.shop.links is None:
            raise PageOff("POLARCREDITS_SECRET_KEY is not set.")
        id = request.query_params.get("checkout_id", "")
        if not _CHECKOUT_ID.fullmatch(id):
            raise NotFound("That is no id of a checkout.")
        id = id.lower()
        looks = _count(request.query_params.get("looks", ""))
        status, headers, state, told = 200, {}, "unknown", None
        try:
            purchase = await self.purchases.look(id, looks=looks, client=_client(request))
            state, told = purchase.state, purchase.account
        except (PolarUnavailable, PolarRefused, ConfigError, DatabaseError, TooMany) as error:
            refusal = self.refusal(error)
            status, headers = refusal.status, _retry(refusal)
            state = "crowded" if isinstance(error, TooMany) else "unknown"
        again = _pause(looks) if state in ("unknown", "crowded", "open", "confirming") else None
        return self.render.page(
            request,
            "success.html",
            status=status,
            headers=headers,
            state=state,
            told=told,
            again=again,
            here=f"/checkout/success?checkout_id={id}",
            looks=looks + 1,
        )

    async def billing(self, request: Request) -> Response:
        """Show a user's own account."""
        token = request.path_params["token"]
        named = self.links.read_user(token, self.shop.now())
        account = await self.shop.read(lambda: _account(self.shop.ledger, named.user))
        told, catalog = account.told, self.shop.ledger.catalog
        known_to_polar = bool(account.user.polar_customer_ids or account.payments)
        sells = self.shop.settings.access_token is not None and told.status != "closed"
        return self.render.page(
            request,
            "billing.html",
            told=told,
            token=token,
            until=named.expires_at,
            outlook=presentation.outlook(told),
            grants=presentation.grant_rows(told.grants),
            payments=presentation.payment_rows(catalog, account.payments),
            entries=presentation.entry_rows(account.entries, told.grants),
            portal=known_to_polar and sells,
            sells=sells,
        )

    async def portal(self, request: Request) -> Response:
        """Open a session of Polar's customer portal, and send the browser there."""
        refuse_foreign(request, self.shop.settings.public_url)
        named = self.links.read_user(request.path_params["token"], self.shop.now())
        self.presses.take(_client(request))
        user = await self.shop.read(lambda: show_user(self.shop.ledger, named.user))
        return self.render.leave(request, await self.shop.portal(user.id), what="the customer portal")


def _account(ledger: Ledger, user: str) -> Account:
    """Read a user's account as of one instant. Raises UnknownUser."""

    def work(then: Ledger) -> Account:
        told = statement(then, user)
        return Account(
            told=told,
            user=show_user(then, user),
            entries=history(then, user, limit=_ENTRIES),
            payments=list_payments(then, user=user, limit=_PAYMENTS),
        )

    return ledger.reading(lambda connection: work(ledger.using(connection)))


def _retry(refusal: Refusal) -> dict[str, str]:
    return {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}


def _client(request: Request) -> str:
    return visitor(request.client.host if request.client else None)


def _count(text: str) -> int:
    """Return how often a page was seen, as its address says: from 0 to 99."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 3 else 0


def _pause(looks: int) -> int | None:
    """Return the seconds until the next look, None when it is time to stop."""
    return next((seconds for most, seconds in _LOOKS if looks < most), None)
