"""`polarcredits refill` and `polarcredits ledger verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from polarcredits.cli import context
from polarcredits.cli.output import emit, number, progress, say, table, when

app = typer.Typer(help="The ledger's own laws.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Check the ledger."""


@app.command("verify")
def verify(
    user: Annotated[str | None, typer.Option(help="Only this user.")] = None,
) -> None:
    """Recompute every balance. Example: polarcredits ledger verify"""
    from polarcredits.ledger.verify import verify as verified

    with context.ledger() as ledger:
        found = verified(ledger, user=user)
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
            say(f"{number(found.users)} users, {number(found.transactions)} entries: all is well.")
            return
        rows = [(problem.user, problem.code, problem.detail) for problem in found.problems]
        table(("user", "law", "what is wrong"), rows, empty="")

    emit(document, people)
    if found.problems:
        raise typer.Exit(10)


def refill(
    at: Annotated[str | None, typer.Option(help="As of this time (RFC 3339).")] = None,
    user: Annotated[str | None, typer.Option(help="Only this user.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Report, but change nothing.")] = False,
) -> None:
    """Write down what has fallen due; run it from cron. Example: polarcredits refill"""
    from polarcredits.refill import refill as refilled

    with context.ledger() as ledger, progress("Refilling") as done:
        ledger.actor = "refill"
        report = refilled(ledger, at=context.time_of(at, "--at"), user=user, dry_run=dry_run, progress=done)
    document = {
        "at": report.at,
        "considered": report.considered,
        "granted": report.granted,
        "expired": report.expired,
        "downgraded": report.downgraded,
        "credits_granted": report.credits_granted,
        "credits_expired": report.credits_expired,
        "failed": report.failed,
    }
    dry = " (dry run: nothing was changed)" if dry_run else ""
    emit(
        document,
        lambda: say(
            f"{number(report.considered)} users at {when(report.at)}: "
            f"{number(report.granted)} grants of {number(report.credits_granted)} credits, "
            f"{number(report.expired)} expiries of {number(report.credits_expired)}, "
            f"{number(report.downgraded)} downgraded{dry}."
        ),
    )
    if report.failed:
        raise typer.Exit(9)
