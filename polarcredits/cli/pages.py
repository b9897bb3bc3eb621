"""`polarcredits billing-link`: a signed link to a user's own page."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from polarcredits.cli import context
from polarcredits.cli.output import emit, hint, say, when
from polarcredits.errors import InvalidInput


def billing_link(
    user: str,
    expires_in: Annotated[str, typer.Option(help="How long the link works: 15m, 1h, 7d.")] = "1h",
) -> None:
    """Make a link to a user's account page. Example: polarcredits billing-link alice --expires-in 1h"""
    from polarcredits.ledger.views import statement
    from polarcredits.server.links import personal_urls

    life = context.duration_of(expires_in, "--expires-in")
    if not life:
        raise InvalidInput("--expires-in must be longer than nothing, such as 1h.")
    expires_at = (datetime.now(UTC) + life).replace(microsecond=0)
    settings = context.settings()
    personal_urls(settings, user, expires_at)  # what is missing is told before a database is opened
    with context.ledger() as ledger:
        owner = statement(ledger, user).user
    billing, pricing = personal_urls(settings, owner, expires_at)
    document = {"url": billing, "expires_at": expires_at, "user": owner, "pricing_url": pricing}

    def people() -> None:
        say(billing)
        hint(f"It shows the account of {owner} to whoever has it, until {when(expires_at)}.")

    emit(document, people)
