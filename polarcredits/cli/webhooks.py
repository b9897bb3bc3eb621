"""`polarcredits webhooks …`: take Polar's events in, look at them, apply them again."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polarcredits.cli import context, deliveries
from polarcredits.cli.output import emit, progress, say, table, when
from polarcredits.cli.reports import report
from polarcredits.errors import InvalidInput

if TYPE_CHECKING:
    from polarcredits.ledger.events import EventRow
    from polarcredits.webhooks.inbox import Inbox, Outcome
    from polarcredits.webhooks.sending import Sender

app = typer.Typer(no_args_is_help=True)
app.command("pull")(deliveries.pull)
app.command("register")(deliveries.register)
app.command("trigger")(deliveries.trigger)

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Event ids.")]
Dry = Annotated[bool, typer.Option(help="Report, but change nothing.")]


@app.command("ingest")
def ingest(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="- reads stdin.")],
    unsigned: Annotated[bool, typer.Option(help="Take payloads without proof.")] = False,
    allow_triggered: Annotated[bool, typer.Option(help="Take made-up events (sandbox).")] = False,
    dry_run: Dry = False,
) -> None:
    """Take events from files. Example: polarcredits webhooks ingest deliveries.jsonl"""
    from polarcredits.webhooks.inbox import batches
    from polarcredits.webhooks.reading import read_elements

    known = context.settings()
    if allow_triggered and known.environment != "sandbox":
        raise InvalidInput("--allow-triggered works with POLAR_ENVIRONMENT=sandbox only.")
    elements = [each for file in files for each in read_elements(_content(file), file)]
    now = datetime.now(UTC)
    outcomes: list[Outcome] = []
    with context.ledger(rehearse=dry_run) as ledger, progress("Ingesting") as done:
        inbox = context.inbox(ledger)
        for some in batches(elements):
            outcomes += inbox.ingest_many(some, now=now, unsigned=unsigned, allow_triggered=allow_triggered)
            done(len(outcomes), len(elements))
    report(outcomes, single=len(elements) == 1)


def _content(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}.") from error


def _document(row: EventRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "type": row.type,
        "status": row.status,
        "received_at": row.received_at,
        "occurred_at": row.occurred_at,
        "attempts": row.attempts,
        "user": row.user,
        "error": row.error,
        "next_attempt_at": row.next_attempt_at,
        "dead": row.dead,
    }


@app.command("list")
def list_(
    status: Annotated[str | None, typer.Option(help="applied, ignored, failed (dead too) or dead.")] = None,
    type: Annotated[str | None, typer.Option(help="Only this type.")] = None,
    user: Annotated[str | None, typer.Option(help="Only this user's.")] = None,
    since: Annotated[str | None, typer.Option(help="Received from this time on.")] = None,
    limit: context.Limit = 50,
) -> None:
    """List events, newest first. Example: polarcredits webhooks list --status failed"""
    from polarcredits.ledger.views import show_user

    with context.ledger() as ledger:
        if user is not None:
            show_user(ledger, user)
        rows = context.inbox(ledger).list(
            status=status,
            type=type,
            user=user,
            since=context.time_of(since, "--since"),
            limit=limit,
        )
    shown = [(when(row.received_at), row.type or "-", row.status, row.user or "-", row.id) for row in rows]
    emit(
        {"events": [_document(row) for row in rows]},
        lambda: table(("received", "type", "status", "user", "id"), shown, empty="No events."),
    )


@app.command("show")
def show(id: str) -> None:
    """Show one event with its payload. Example: polarcredits webhooks show 0b6f…"""
    import json

    with context.ledger() as ledger:
        row = context.inbox(ledger).stored(id)

    def people() -> None:
        say(f"{row.id}: {row.type}, {row.status}, received {when(row.received_at)}")
        if row.error:
            say(f"Error: {row.error}")
        say(json.dumps(row.payload, indent=2, ensure_ascii=False))

    emit({**_document(row), "payload": row.payload}, people)


@app.command("retry")
def retry(
    ids: Ids = None,
    all: Annotated[bool, typer.Option("--all", help="Every failed event.")] = False,
) -> None:
    """Apply failed events again. Example: polarcredits webhooks retry --all"""
    if not ids and not all:
        raise typer.BadParameter("name events, or give --all")
    outcomes: list[Outcome] = []
    with context.ledger() as ledger, progress("Retrying") as done:
        inbox = context.inbox(ledger)
        now = datetime.now(UTC)
        total, pages = _chosen(inbox, None if all else ids, status="failed")
        for page in pages:
            outcomes += inbox.again_many(page, now=now)
            done(len(outcomes), total)
    report(outcomes, single=False)


@app.command("replay")
def replay(
    ids: Ids = None,
    since: Annotated[str | None, typer.Option(help="Received from this time on.")] = None,
    until: Annotated[str | None, typer.Option(help="Received before this time.")] = None,
    type: Annotated[str | None, typer.Option(help="Only this type.")] = None,
    all: Annotated[bool, typer.Option("--all", help="Every stored event.")] = False,
    to: Annotated[str | None, typer.Option(help="Send them, freshly signed, to this address.")] = None,
    dry_run: Dry = False,
) -> None:
    """Apply stored events again; credits change only where something was missed.

    Example: polarcredits webhooks replay --all
    """
    if not (ids or since or until or type or all):
        raise typer.BadParameter("name events, or give --since, --until, --type or --all")
    if to is not None and dry_run:
        raise typer.BadParameter("--to sends events, which --dry-run cannot undo")
    with context.ledger(rehearse=dry_run) as ledger, progress("Replaying") as done:
        inbox = context.inbox(ledger)
        total, pages = _chosen(
            inbox,
            ids,
            type=type,
            since=context.time_of(since, "--since"),
            until=context.time_of(until, "--until"),
        )
        outcomes: list[Outcome] = []
        with deliveries.sender(to) if to is not None else contextlib.nullcontext() as target:
            now = datetime.now(UTC)
            for page in pages:
                if target is None:
                    outcomes += inbox.again_many(page, now=now)
                else:
                    outcomes += _sent(target, page)
                done(len(outcomes), total)
    report(outcomes, single=False)


def _sent(target: Sender, page: Iterable[EventRow]) -> Iterator[Outcome]:
    for row in page:
        yield target.send(row.raw, id=row.id, type=row.type)


def _chosen(inbox: Inbox, ids: list[str] | None, **wanted: Any) -> tuple[int, Iterable[Sequence[EventRow]]]:
    """Return how many events are meant, and these a page at a time: those named, else those *wanted*."""
    if ids:
        return len(ids), [[inbox.stored(id) for id in dict.fromkeys(ids)]]
    return inbox.count(**wanted), inbox.pages(**wanted)
