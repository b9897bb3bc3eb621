"""`polarcredits webhooks pull|register|trigger`: deliveries from Polar, and our own for development."""

from __future__ import annotations

import json
import os
import secrets
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polarcredits.cli import context
from polarcredits.cli.output import emit, hint, progress, say
from polarcredits.cli.reports import report
from polarcredits.errors import ConfigError, InvalidInput

if TYPE_CHECKING:
    from polarcredits.webhooks.inbox import Outcome
    from polarcredits.webhooks.sending import Sender


def pull(
    since: Annotated[str, typer.Option(help="So long ago (2d), or from a time on.")] = "2d",
    dry_run: Annotated[bool, typer.Option(help="Report, but change nothing.")] = False,
) -> None:
    """Take missed deliveries from Polar's log. Example: polarcredits webhooks pull --since 2d"""
    from polarcredits.spool import spooled
    from polarcredits.webhooks.pull import logged, read, take_logged, written

    now = datetime.now(UTC)
    begin = context.since_of(since, now) or now
    with context.polar() as polar, progress("Reading Polar's log") as done:
        deliveries = logged(polar, begin, done)
        if not dry_run:
            with context.ledger() as ledger:
                outcomes = list(take_logged(context.inbox(ledger), deliveries, now=now))
        else:
            with spooled(written(deliveries)) as lines, context.ledger(rehearse=True) as stage:
                outcomes = list(take_logged(context.inbox(stage), read(lines), now=now))
    report(outcomes, single=False)


def register(
    url: Annotated[str, typer.Argument(help="Where Polar is to send: https://…/webhooks/polar")],
    events: Annotated[list[str] | None, typer.Option(help="In place of all that we need.")] = None,
) -> None:
    """Make or repair the webhook endpoint.

    Example: polarcredits webhooks register https://example.com/webhooks/polar
    """
    from polarcredits.dotenv_file import dotenv_path, save
    from polarcredits.webhooks.endpoints import register as registered

    known = context.settings()
    wanted = [each.strip() for some in events or [] for each in some.split(",") if each.strip()]
    with context.polar() as polar:
        endpoint = registered(polar, url, wanted or None)
    secret = endpoint.secret or ""
    saved = dotenv_path(Path.cwd(), known.config_path)
    save(saved, "POLAR_WEBHOOK_SECRET", secret, keep=True)
    document = {
        "id": endpoint.id,
        "url": endpoint.url,
        "events": list(endpoint.events),
        "api_version": endpoint.api_version,
        "secret_saved_to": str(saved),
    }

    def people() -> None:
        say(f"Polar sends {len(endpoint.events)} kinds of events to {endpoint.url}.")
        say(f"The secret is in {saved}.")

    emit(document, people)
    real = os.environ.get("POLAR_WEBHOOK_SECRET", "")
    if real.strip() and secret not in [each.strip() for each in real.split(",")]:
        hint("Warning: the environment's POLAR_WEBHOOK_SECRET is another, and goes before that file.")


def trigger(
    name: Annotated[str, typer.Argument(metavar="TYPE", help="purchase, renewal, refund, pack …")],
    user: Annotated[str, typer.Option(help="Whose events.")] = "trigger",
    plan: Annotated[str | None, typer.Option(help="The plan that is bought.")] = None,
    to: Annotated[str | None, typer.Option(help="Send them to this address, not to the inbox.")] = None,
) -> None:
    """Make up a realistic signed sequence. Example: polarcredits webhooks trigger purchase --user bob"""
    from polarcredits.webhooks.trigger import tell

    known = context.settings()
    if known.environment != "sandbox":
        raise InvalidInput("webhooks trigger makes up purchases: for that POLAR_ENVIRONMENT must be sandbox.")
    now = datetime.now(UTC)
    if to is not None:
        with sender(to) as target:
            payloads = tell(name, known.catalog, user=user, plan=plan, known=(), now=now)
            outcomes = [target.send(_raw(each), id=str(uuid.uuid4()), type=each["type"]) for each in payloads]
        report(outcomes, single=False)
        return
    with context.ledger() as ledger:
        inbox = context.inbox(ledger)
        before = [row.payload for row in inbox.list(user=user, limit=_LOOK_BACK)]
        payloads = tell(name, known.catalog, user=user, plan=plan, known=before, now=now)
        outcomes = [_deliver(ledger, payload, now) for payload in payloads]
    report(outcomes, single=False)


_LOOK_BACK = 200


def _deliver(ledger: Any, payload: dict[str, Any], now: datetime) -> Outcome:
    """Take one event into the inbox, signed and verified as any other."""
    from polarcredits.webhooks.fixtures import deliver
    from polarcredits.webhooks.inbox import Inbox
    from polarcredits.webhooks.reading import read_elements

    secret = f"whsec_{secrets.token_hex(20)}"
    stored = deliver(payload, id=str(uuid.uuid4()), secret=secret, at=now)
    element = read_elements(json.dumps(stored).encode(), "trigger")[0]
    inbox = Inbox(ledger, environment=context.settings().environment, secrets=[secret])
    return inbox.ingest(element, now=now)


def _raw(payload: dict[str, Any]) -> bytes:
    return json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode()


def sender(to: str) -> Sender:
    """Return what sends signed events to an address. Raises ConfigError without a secret."""
    from polarcredits.webhooks.sending import Sender

    known = context.settings().webhook_secrets
    if not known:
        raise ConfigError(
            "POLAR_WEBHOOK_SECRET is not set: neither in the environment nor in a .env file. "
            "What is sent must be signed with the secret that the other server knows.",
            setting="POLAR_WEBHOOK_SECRET",
        )
    return Sender(to, known[0].reveal())
