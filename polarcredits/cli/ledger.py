"""`polarcredits refill` and `polarcredits ledger verify`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from polarcredits.cli import context
from polarcredits.cli.output import counted, emit, hint, number, progress, say, table, when
from polarcredits.errors import PolarRefused, PolarUnavailable

if TYPE_CHECKING:
    from polarcredits.ledger.ledger import Ledger

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Check the ledger."""


@app.command("verify")
def verify(
    user: Annotated[str | None, typer.Option(help="Only this user.")] = None,
) -> None:
    """Recompute every balance. Example: polarcredits ledger verify"""
    from polarcredits.ledger.verify import verify as verified

    with context.ledger() as ledger, progress("Verifying") as done:
        found = verified(ledger, user=user, progress=done)
    document = {
        "ok": not found.problems,
        "users": found.users,
        "transactions": found.transactions,
        "problems": [
            {"code": problem.code, "user": problem.user, "detail": problem.detail}
            for problem in found.problems
        ],
    }

    def people() -> None:
        if not found.problems:
            entries = counted(found.transactions, "entry", "entries")
            say(f"{counted(found.users, 'user')}, {entries}: all is well.")
            return
        rows = [(problem.user, problem.code, problem.detail) for problem in found.problems]
        table(("user", "law", "what is wrong"), rows, empty="")

    emit(document, people)
    if found.problems:
        raise typer.Exit(10)


def _ask_polar(ledger: Ledger, at: datetime) -> list[dict[str, str | None]]:
    """Take what Polar tells of subscriptions whose period is over; return what failed.

    A Polar that is away keeps nobody from being refilled by what is known.
    """
    from polarcredits.sync import sync_overdue

    try:
        with context.polar() as polar:
            report = sync_overdue(ledger, polar, environment=context.settings().environment, at=at)
    except (PolarUnavailable, PolarRefused) as error:
        return [{"user": None, "error": error.message}]
    return [
        {"user": None, "error": f"{each['kind']} {each['id']}: {each['error']}"} for each in report.failed
    ]


def refill(
    at: Annotated[str | None, typer.Option(help="As of this time (RFC 3339).")] = None,
    user: Annotated[str | None, typer.Option(help="Only this user.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Report, but change nothing.")] = False,
    sync: Annotated[bool, typer.Option("--sync", help="First ask Polar about what looks overdue.")] = False,
) -> None:
    """Write down what has fallen due; run it from cron. Example: polarcredits refill"""
    if sync and dry_run:
        raise typer.BadParameter("--sync takes facts in, which --dry-run cannot undo; see: sync --dry-run")
    from polarcredits.refill import refill as refilled

    with context.ledger() as ledger, progress("Refilling") as done:
        when_due = context.time_of(at, "--at")
        ledger.actor = "sync"
        unasked = _ask_polar(ledger, when_due or datetime.now(UTC)) if sync else []
        ledger.actor = "refill"
        report = refilled(ledger, at=when_due, user=user, dry_run=dry_run, progress=done)
    document = {
        "at": report.at,
        "considered": report.considered,
        "granted": report.granted,
        "expired": report.expired,
        "downgraded": report.downgraded,
        "credits_granted": report.credits_granted,
        "credits_expired": report.credits_expired,
        "failed": [*unasked, *report.failed],
    }
    dry = " (dry run: nothing was changed)" if dry_run else ""
    emit(
        document,
        lambda: say(
            f"{counted(report.considered, 'user')} at {when(report.at)}: "
            f"{counted(report.granted, 'grant')} of {counted(report.credits_granted, 'credit')}, "
            f"{counted(report.expired, 'expiry', 'expiries')} of {number(report.credits_expired)}, "
            f"{number(report.downgraded)} downgraded{dry}."
        ),
    )
    for each in unasked:
        hint(f"Warning: {each['error']}")
    if report.failed or unasked:
        raise typer.Exit(9)
