"""A server with pages, Polar's stand-in behind it, and a visitor without cookies or scripts."""

from __future__ import annotations

import html
import json
import re
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.views import history, statement
from polarcredits.server.links import Links
from polarcredits.webhooks.samples import event
from polarcredits.webhooks.signature import sign
from tests.server.conftest import sqlite
from tests.server.serving import PACK, PRO, Serving, opened, serving
from tests.stand_in.server import TOKEN, PolarStandIn
from tests.webhooks.recordings import SECRET

KEY = "a-key-for-the-tests-0123456789-abcdefgh"
OLD_KEY = "an-older-key-for-the-tests-9876543210"


class Market:
    """Everything that a purchase needs, and what became of it."""

    def __init__(self, server: Serving, polar: PolarStandIn, database: str) -> None:
        self.server = server
        self.polar = polar
        self.ledger: Ledger = opened(database)
        self.links = Links([KEY])
        self._visits = 0
        self.visitor = httpx.Client(base_url=server.url, timeout=30, trust_env=False)

    def close(self) -> None:
        """Close what was opened."""
        self.visitor.close()
        self.ledger.close()

    def clear(self) -> None:
        """Forget what Polar has but its products, and visit from another address."""
        self.polar.behave()
        with self.polar.lock:
            for kind in ("customer", "checkout", "subscription", "order"):
                self.polar.state.objects[kind].clear()
        self.polar.exchanges.clear()
        self.polar.state.site = self.polar.url
        self._visits += 1
        self.visitor.headers["x-forwarded-for"] = f"203.0.113.{self._visits}"

    def user(self, *, email: str | None = "user@example.com", name: str = "") -> str:
        """Add a user with an id of their own."""
        id = name or f"user-{uuid.uuid4().hex[:12]}"
        self.ledger.add_user(id, email=email and f"{uuid.uuid4().hex[:8]}.{email}")
        return id

    def token(self, user: str, *, life: timedelta = timedelta(hours=1)) -> str:
        """Return a link's token for a user."""
        return self.links.user(user, datetime.now(UTC) + life)

    def offer(self, name: str, page: str) -> str:
        """Return the hidden field of the button that buys something."""
        found = re.search(
            rf'name="offer" value="([^"]+)">\s*<button[^>]*>Buy {name}</button>', page, re.DOTALL
        )
        assert found, page
        return html.unescape(found[1])

    def press(self, name: str, *, token: str | None = None, **fields: str) -> httpx.Response:
        """Press a button of the pricing page."""
        page = self.visitor.get("/pricing", params={"user": token} if token else {})
        assert page.status_code == 200
        return self.visitor.post("/checkout", data={"offer": self.offer(name, page.text), **fields})

    def checkout(self, user: str | None = None, product: str = PRO, **fields: Any) -> str:
        """Make a checkout at Polar; return its id."""
        with self.polar.lock:
            customer = self.polar.state.add_customer(f"{uuid.uuid4()}@example.com", user) if user else None
            named = {"user_id": user} if user else {}
            made = {
                "url": f"{self.polar.url}/checkout/x",
                "expires_at": self.polar.state.end_of_checkout(),
                "success_url": "https://example.com/",
                "metadata": named,
                "customer_id": customer["id"] if customer else None,
                "external_customer_id": user,
                "customer_email": None,
                "products": [self.polar.state.find("product", product)],
                "product_id": product,
                "organization_id": self.polar.state.organization_id,
            }
            return str(self.polar.state.put("checkout", made | fields)["id"])

    def pay(self, checkout: str) -> None:
        """Let the buyer pay."""
        with self.polar.lock:
            self.polar.state.pay(checkout)

    def deliver(self, checkout: str) -> None:
        """Send the webhooks of a paid checkout."""
        with self.polar.lock:
            told = [
                (kind, self.polar.state.shown(kind, each))
                for kind in ("subscription", "order")
                for each in self.polar.state.all(kind)
                if each["checkout_id"] == checkout
            ]
        for kind, document in told:
            verb = "active" if kind == "subscription" else "paid"
            raw = json.dumps(event(f"{kind}.{verb}", datetime.now(UTC), document)).encode()
            headers = sign(raw, id=str(uuid.uuid4()), secret=SECRET, at=datetime.now(UTC))
            assert self.visitor.post("/webhooks/polar", content=raw, headers=headers).status_code == 202

    def standing(self, user: str) -> tuple[str, int, int]:
        """Return a user's plan, balance and number of entries: what a refusal must not move."""
        told = statement(self.ledger, user)
        return told.plan, told.balance.balance, len(history(self.ledger, user))

    def made(self) -> tuple[int, int]:
        """Return how many checkouts and customers Polar has, and portal sessions it was asked for."""
        return self.polar.count("checkout") + self.polar.count("customer"), self.sent(
            "POST", "/v1/customer-sessions"
        )

    def sent(self, method: str, path: str) -> int:
        """Return how many requests Polar has had that begin so."""
        return sum(
            each.method == method and each.target.startswith(path) for each in list(self.polar.exchanges)
        )


@contextmanager
def market(
    folder: Path, *, environ: Mapping[str, str] | None = None, public: bool = False
) -> Iterator[Market]:
    """Run a server with pages; *public*: its own address is the public one."""
    database = sqlite(folder)
    port = free_port()
    with PolarStandIn() as polar:
        polar.state.add_product("Pro", id=PRO)
        polar.state.add_product("Small pack", id=PACK, interval=None, price=500)
        polar.state.site = polar.url
        settings = {
            "POLAR_ACCESS_TOKEN": TOKEN,
            "POLAR_BASE_URL": polar.url,
            "POLARCREDITS_SECRET_KEY": f"{KEY}, {OLD_KEY}",
            "POLARCREDITS_PUBLIC_URL": f"http://127.0.0.1:{port}"
            if public
            else "https://credits.example.com",
        }
        options = ["--port", str(port)]
        with serving(
            folder / "run", database, options=options, environ=settings | dict(environ or {})
        ) as server:
            running = Market(server, polar, database)
            try:
                yield running
            finally:
                running.close()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
