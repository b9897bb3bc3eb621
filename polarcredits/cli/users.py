"""`polarcredits users …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polarcredits.cli import context
from polarcredits.cli.output import emit, say, table, when

app = typer.Typer(no_args_is_help=True)


def _document(user: Any) -> dict[str, Any]:
    return {
        "id": user.id,
        "email": user.email,
        "name": user.name,
        "plan": user.plan,
        "status": user.status,
        "polar_customer_ids": user.polar_customer_ids,
        "created_at": user.created_at,
    }


def _tell(user: Any) -> None:
    document = _document(user)

    def people() -> None:
        say(f"{user.id}: plan {user.plan}" + (f" ({user.status})" if user.status else ""))
        for label, value in (("e-mail", user.email), ("name", user.name)):
            if value:
                say(f"  {label}: {value}")
        for customer in user.polar_customer_ids:
            say(f"  Polar customer: {customer}")
        say(f"  since {when(user.created_at)}")

    emit(document, people)


@app.command("add")
def add(
    user: str,
    email: Annotated[str | None, typer.Option(help="E-mail address.")] = None,
    name: Annotated[str | None, typer.Option(help="Display name.")] = None,
) -> None:
    """Add a user, or update one. Example: polarcredits users add alice --email a@example.com"""
    from polarcredits.ledger.views import show_user

    with context.ledger() as ledger:
        ledger.add_user(user, email=email, name=name)
        _tell(show_user(ledger, user))


@app.command("show")
def show(user: str) -> None:
    """Show a user. Example: polarcredits users show alice"""
    from polarcredits.ledger.views import show_user

    with context.ledger() as ledger:
        _tell(show_user(ledger, user))


@app.command("list")
def list_(
    plan: Annotated[str | None, typer.Option(help="Only users on this plan.")] = None,
    limit: context.Limit = 50,
) -> None:
    """List users, newest first. Example: polarcredits users list --plan pro"""
    from polarcredits.ledger.views import list_users

    with context.ledger() as ledger:
        if plan is not None:
            ledger.catalog.plan(plan)
        users = list_users(ledger, plan=plan, limit=limit)
    rows = [
        (user.id, user.plan, user.status or "-", user.email or "-", when(user.created_at)) for user in users
    ]
    emit(
        {"users": [_document(user) for user in users]},
        lambda: table(("user", "plan", "status", "e-mail", "since"), rows, empty="No users yet."),
    )


@app.command("link")
def link(placeholder: Annotated[str, typer.Argument(metavar="FROM")], user: str) -> None:
    """Give an account polar:<customer> to a user. Example: polarcredits users link polar:c1 alice"""
    from polarcredits.ledger.views import show_user

    with context.ledger() as ledger:
        ledger.link(placeholder, user)
        _tell(show_user(ledger, user))


@app.command("import")
def import_(
    file: Path,
    dry_run: Annotated[bool, typer.Option(help="Report, but change nothing.")] = False,
) -> None:
    """Import users from CSV or JSON Lines. Example: polarcredits users import users.csv"""
    from polarcredits.ledger.importing import import_users

    with context.ledger() as ledger:
        report = import_users(ledger, file, dry_run=dry_run)

    def people() -> None:
        say(
            f"{report['added']} added, {report['updated']} updated, "
            f"{report['unchanged']} unchanged, {len(report['failed'])} failed."
        )
        for failure in report["failed"]:
            say(f"  line {failure['line']}: {failure['error']}")

    emit(report, people)
    if report["failed"]:
        raise typer.Exit(9)
