"""`polarcredits plans`, `subscriptions …` and `payments …`: what is sold, and what was bought."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from polarcredits.cli import checks, context
from polarcredits.cli.output import emit, number, say, table, when

subscriptions = typer.Typer(no_args_is_help=True)
payments = typer.Typer(no_args_is_help=True)


plans_app = typer.Typer()
plans_app.command("diff")(checks.plans_diff)


@plans_app.callback(invoke_without_command=True)
def plans(invoked: typer.Context) -> None:
    """Show plans, packs and what operations cost. Example: polarcredits plans"""
    if invoked.invoked_subcommand is not None:
        return
    catalog = context.settings().catalog
    document = {
        "plans": [
            {
                "name": plan.name,
                "credits": plan.credits,
                "interval": plan.interval,
                "product_ids": list(plan.product_ids),
                "rollover": "all" if plan.rollover is None else plan.rollover,
                "trial_credits": plan.trial_credits,
                "per_seat": plan.per_seat,
                "renewal_grace": f"{int(plan.renewal_grace.total_seconds())}s",
                "default": plan.name == catalog.default_plan,
            }
            for plan in catalog.plans
        ],
        "packs": [
            {
                "name": pack.name,
                "credits": pack.credits,
                "product_ids": list(pack.product_ids),
                "expires_after": None
                if pack.expires_after is None
                else f"{int(pack.expires_after.total_seconds())}s",
            }
            for pack in catalog.packs
        ],
        "operations": dict(catalog.operations),
        "policy": {"clawback": catalog.policy.clawback, "upgrade": catalog.policy.upgrade},
    }

    def people() -> None:
        rows: list[tuple[str, str, str, str]] = [
            (plan.name, number(plan.credits), plan.interval, ", ".join(plan.product_ids) or "-")
            for plan in catalog.plans
        ]
        rows += [
            (pack.name, number(pack.credits), "pack", ", ".join(pack.product_ids) or "-")
            for pack in catalog.packs
        ]
        table(("name", "credits", "interval", "products"), rows, empty="Nothing is sold.")
        for name, cost in catalog.operations.items():
            say(f"{name} costs {number(cost)}.")

    emit(document, people)


@subscriptions.command("list")
def list_subscriptions(
    user: Annotated[str | None, typer.Option(help="Only this user's.")] = None,
    status: Annotated[str | None, typer.Option(help="Only with this status.")] = None,
    limit: context.Limit = 50,
) -> None:
    """List subscriptions, newest first. Example: polarcredits subscriptions list --user alice"""
    from polarcredits.ledger import views

    with context.ledger() as ledger:
        found = views.list_subscriptions(ledger, user=user, status=status, limit=limit)
    emit({"subscriptions": found}, lambda: _table(found))


@subscriptions.command("show")
def show_subscription(id: str) -> None:
    """Show one subscription. Example: polarcredits subscriptions show 0b6f…"""
    from polarcredits.ledger import views

    with context.ledger() as ledger:
        found = views.list_subscriptions(ledger, id=id)
    emit(found[0], lambda: _table(found))


def _table(found: list[dict[str, Any]]) -> None:
    rows = [
        (
            each["id"],
            each["user"] or "-",
            each["plan"] or "-",
            each["status"],
            when(each["current_period_end"]),
        )
        for each in found
    ]
    table(("id", "user", "plan", "status", "period ends"), rows, empty="No subscriptions.")


@payments.command("list")
def list_payments(
    user: Annotated[str | None, typer.Option(help="Only this user's.")] = None,
    limit: context.Limit = 50,
) -> None:
    """List orders, newest first. Example: polarcredits payments list --user alice"""
    from polarcredits.ledger import views

    with context.ledger() as ledger:
        found = views.list_payments(ledger, user=user, limit=limit)
    rows = [
        (
            when(each["created_at"]),
            each["user"] or "-",
            f"{each['amount_cents'] / 100:,.2f}",
            f"{each['refunded_cents'] / 100:,.2f}",
            each["currency"],
            each["status"],
        )
        for each in found
    ]
    emit(
        {"payments": found},
        lambda: table(
            ("when", "user", "amount", "refunded", "currency", "status"), rows, empty="No payments."
        ),
    )
