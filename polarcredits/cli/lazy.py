"""Commands by name and help line; the module of one is imported when it is used, and no other.

`--help` and completion of the first word need the lines alone (a test holds them to the modules').
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS: dict[str, tuple[str, str]] = {
    "checkout": ("polar:checkout", "Open a checkout."),
    "portal": ("polar:portal", "Make a link to the customer portal."),
    "sync": ("polar:sync", "Bring the ledger in step with Polar."),
    "serve-webhooks": ("serve:serve_webhooks", "Take Polar's deliveries, and show buyers their pages."),
    "billing-link": ("pages:billing_link", "Make a link to a user's own page, for a while."),
    "refill": ("ledger:refill", "Write down what has fallen due; run it from cron."),
    "doctor": ("checks:doctor", "Check everything that keeps credits right."),
    "init": ("setup:init", "Write polarcredits.toml and make the database."),
    "demo": ("demo:demo", "Run a customer's life offline, and say each step."),
    "credits": ("credits:app", "Credits: show, explain, grant, deduct, hold, history."),
    "users": ("users:app", "Users: add, show, list, link, import."),
    "subscriptions": ("data:subscriptions", "Subscriptions as Polar last told them."),
    "payments": ("data:payments", "Orders, before tax."),
    "webhooks": ("webhooks:app", "Polar's events: ingest, list, show, retry, replay, pull."),
    "ledger": ("ledger:app", "The ledger's own laws."),
    "db": ("database:app", "The database: upgrade, current, backup."),
    "plans": ("data:plans_app", "What is sold, and against Polar's products."),
}
"""What each is (module of this package, name in it) and its line in `--help`."""


class LazyGroup(TyperGroup):
    """The first word of the command line."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (_, line) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=line))

    def invoke(self, ctx: Any) -> Any:
        """Let Ctrl-C be told as any other failure; typer's own ending says nothing under --json."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise typer.Abort from interrupt

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that *args* begin with, then resolve it."""
        if args[0] in COMMANDS:
            self.add_command(load(args[0]), args[0])
        return super().resolve_command(ctx, args)


def load(name: str) -> Any:
    """Import a command and return it, ready to be run."""
    where, line = COMMANDS[name]
    module, attribute = where.split(":")
    target = getattr(import_module(f"polarcredits.cli.{module}"), attribute)
    parent = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    if isinstance(target, typer.Typer):
        parent.add_typer(target, name=name, help=line)
    else:
        parent.command(name)(target)
    return typer.main.get_group(parent).commands[name]
