"""`polarcredits credits …`: spend and give, one transaction a command."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from polarcredits.cli import context
from polarcredits.cli.documents import (
    grant_document,
    hold_document,
    receipt_document,
    transaction_document,
)
from polarcredits.cli.output import emit, hint, number, say, table, when

app = typer.Typer(no_args_is_help=True)

Key = Annotated[str | None, typer.Option(help="The same key again does nothing twice.")]
Meta = Annotated[list[str] | None, typer.Option(help="K=V, kept with the entry.")]
At = Annotated[str | None, typer.Option(help="As of this time (RFC 3339).")]


def _receipt(receipt: Any, verb: str, extra: dict[str, Any] | None = None) -> None:
    entry = receipt.transaction

    def people() -> None:
        again = " (done before; nothing changed)" if receipt.replayed else ""
        say(f"{verb} {number(abs(entry.amount))} for {entry.user}{again}: {entry.id}")
        say(f"Balance {number(receipt.balance)}, available {number(receipt.available)}.")

    emit({**receipt_document(receipt), **(extra or {})}, people)


@app.command("show")
def show(user: str, at: At = None) -> None:
    """Show plan, balance and live grants. Example: polarcredits credits show alice"""
    from polarcredits.ledger.views import statement

    with context.ledger() as ledger:
        told = statement(ledger, user, context.time_of(at, "--at"))
    document = {
        "user": told.user,
        "plan": told.plan,
        "status": told.status,
        "balance": told.balance.balance,
        "held": told.balance.held,
        "available": told.balance.available,
        "owed": told.balance.owed,
        "grants": [grant_document(lot) for lot in told.grants],
        "subscriptions": [
            {
                "id": shown.fact.id,
                "plan": shown.plan,
                "status": shown.fact.status,
                "current_period_end": shown.fact.current_period_end,
                "cancel_at_period_end": shown.fact.cancel_at_period_end,
                "ends_at": shown.fact.ends_at,
            }
            for shown in told.subscriptions
        ],
        "next_refill_at": told.next_refill_at,
        "as_of": told.as_of,
    }

    def people() -> None:
        status = f" ({told.status})" if told.status else ""
        say(f"{told.user}: plan {told.plan}{status}")
        line = f"Available {number(told.balance.available)} of {number(told.balance.balance)}"
        line += f", {number(told.balance.held)} on hold" if told.balance.held else ""
        line += f"; {number(told.balance.owed)} owed" if told.balance.owed else ""
        say(line + ".")
        rows = [
            (lot.source, number(lot.remaining), number(lot.amount), when(lot.expires_at))
            for lot in told.grants
        ]
        table(("grant", "left", "of", "expires"), rows, empty="No credits.")
        for shown in told.subscriptions:
            if shown.fact.ends_at:
                say(f"The {shown.plan or 'subscription'} ends {when(shown.fact.ends_at)}.")
        if told.next_refill_at:
            say(f"Next refill {when(told.next_refill_at)}.")

    emit(document, people)


@app.command("explain")
def explain(user: str, at: At = None) -> None:
    """Say why the balance is what it is. Example: polarcredits credits explain alice"""
    from polarcredits.ledger.explain import explain as explained

    with context.ledger() as ledger:
        why = explained(ledger, user, context.time_of(at, "--at"))
    document = {
        "user": why.user,
        "as_of": why.as_of,
        "balance": why.balance,
        "grants": [
            {
                **grant_document(each.lot),
                "granted": each.granted,
                "clawed_back": each.clawed_back,
                "expired": each.expired,
                "shortfall": each.lot.shortfall,
                "cause": {
                    "kind": each.lot.cause_kind,
                    "id": each.lot.cause_id,
                    "event_id": each.event_id,
                    "period_start": each.lot.period_start,
                    "period_end": each.lot.period_end,
                },
                "movements": [
                    {
                        "type": line.type,
                        "amount": line.amount,
                        "occurred_at": line.occurred_at,
                        "cause": line.cause,
                    }
                    for line in each.movements
                ],
            }
            for each in why.grants
        ],
        "upcoming": [{"at": next_.at, "what": next_.what, "amount": next_.amount} for next_ in why.upcoming],
    }

    def people() -> None:
        rows: list[tuple[str, str, str, str]] = []
        for each in why.grants:
            lot = each.lot
            rows.append((when(lot.effective_at), f"{lot.source} {lot.plan or ''}".strip(), "", ""))
            for line in each.movements:
                amount = f"{line.amount:+,}"
                rows.append((when(line.occurred_at), f"  {line.type}", amount, line.cause[:24]))
        table(("when", "what", "credits", "cause"), rows, empty="No credits yet.")
        say(f"Balance {number(why.balance)} as of {when(why.as_of)}.")
        for next_ in why.upcoming:
            say(f"Next: {when(next_.at)} {next_.what} ({next_.amount:+,}).")

    emit(document, people)


@app.command("grant")
def grant(
    user: str,
    amount: str,
    reason: Annotated[str | None, typer.Option(help="Why.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="Until this time.")] = None,
    expires_in: Annotated[str | None, typer.Option(help="For so long, such as 30d.")] = None,
    idempotency_key: Key = None,
    create: Annotated[bool, typer.Option(help="Make the user if unknown.")] = False,
    at: At = None,
) -> None:
    """Give credits. Example: polarcredits credits grant alice 100 --reason sorry"""
    if expires_at and expires_in:
        raise typer.BadParameter("give --expires-at or --expires-in, not both")
    with context.ledger() as ledger:
        receipt = ledger.grant(
            user,
            context.amount_of(amount),
            reason=reason,
            expires_at=context.time_of(expires_at, "--expires-at"),
            expires_in=context.duration_of(expires_in, "--expires-in"),
            idempotency_key=idempotency_key,
            create=create,
            at=context.time_of(at, "--at"),
        )
    _receipt(receipt, "Granted")


@app.command("deduct")
def deduct(
    user: str,
    amount: Annotated[str | None, typer.Argument(help="Default: the operation's cost.")] = None,
    operation: Annotated[str, typer.Option(help="What was done.")] = "api_call",
    quantity: Annotated[int, typer.Option(help="How many of it.")] = 1,
    meta: Meta = None,
    idempotency_key: Key = None,
    at: At = None,
) -> None:
    """Spend credits. Example: polarcredits credits deduct alice --operation render"""
    with context.ledger() as ledger:
        receipt = ledger.deduct(
            user,
            None if amount is None else context.amount_of(amount),
            operation=operation,
            quantity=quantity,
            metadata=context.metadata_of(meta),
            idempotency_key=idempotency_key,
            at=context.time_of(at, "--at"),
        )
    _receipt(receipt, "Deducted")


@app.command("reverse")
def reverse(
    transaction: str,
    reason: Annotated[str | None, typer.Option(help="Why.")] = None,
    at: At = None,
) -> None:
    """Give a deduction back, whole. Example: polarcredits credits reverse txn_1_5"""
    with context.ledger() as ledger:
        receipt = ledger.reverse(transaction, reason=reason, at=context.time_of(at, "--at"))
    _receipt(receipt, "Gave back")


@app.command("hold")
def hold(
    user: str,
    amount: str,
    ttl: Annotated[str, typer.Option(help="For so long, at most 24h.")] = "15m",
    operation: Annotated[str | None, typer.Option(help="What for.")] = None,
    meta: Meta = None,
    idempotency_key: Key = None,
    at: At = None,
) -> None:
    """Reserve credits. Example: polarcredits credits hold alice 50 --ttl 5m"""
    from datetime import timedelta

    with context.ledger() as ledger:
        placed = ledger.hold(
            user,
            context.amount_of(amount),
            ttl=context.duration_of(ttl, "--ttl") or timedelta(0),
            operation=operation,
            metadata=context.metadata_of(meta),
            idempotency_key=idempotency_key,
            at=context.time_of(at, "--at"),
        ).state
    emit(
        {**hold_document(placed), "available": placed.available},
        lambda: say(
            f"Holding {number(placed.amount)} for {placed.user} until {when(placed.expires_at)}: {placed.id}"
        ),
    )


@app.command("capture")
def capture(
    hold: str,
    amount: Annotated[str | None, typer.Argument(help="Default: all of it.")] = None,
    at: At = None,
) -> None:
    """Spend a hold, or a part. Example: polarcredits credits capture hold_1f 31"""
    with context.ledger() as ledger:
        receipt, state = ledger.holds.capture(
            hold,
            None if amount is None else context.amount_of(amount),
            at=context.time_of(at, "--at"),
        )
    _receipt(receipt, "Captured", hold_document(state))


@app.command("release")
def release(hold: str, at: At = None) -> None:
    """Free a hold. Example: polarcredits credits release hold_1f"""
    with context.ledger() as ledger:
        state = ledger.holds.release(hold, at=context.time_of(at, "--at"))
    emit(
        {**hold_document(state), "available": state.available},
        lambda: say(f"Released {number(state.amount)}; available {number(state.available)}."),
    )


@app.command("history")
def history(
    user: str,
    since: Annotated[str | None, typer.Option(help="From this time on.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this time.")] = None,
    type: Annotated[str | None, typer.Option(help="Only this type of entry.")] = None,
    limit: context.Limit = 50,
    plot: Annotated[bool, typer.Option(help="Draw the balance over time.")] = False,
) -> None:
    """List entries, newest first. Example: polarcredits credits history alice --type deduct"""
    from polarcredits.ledger.views import archived
    from polarcredits.ledger.views import history as entries

    start = context.time_of(since, "--since")
    with context.ledger() as ledger:
        found = entries(
            ledger,
            user,
            since=start,
            until=context.time_of(until, "--until"),
            type=type,
            limit=limit,
        )
        opened = archived(ledger, user) if len(found) < limit else None

    def people() -> None:
        if plot:
            for line in _plot([entry.balance_after for entry in reversed(found)]):
                say(line)
            return
        rows = [
            (
                when(entry.occurred_at),
                entry.type,
                f"{entry.amount:+,}",
                number(entry.balance_after),
                (entry.operation or entry.reason or entry.actor)[:24],
            )
            for entry in found
        ]
        table(("when", "type", "credits", "balance", "for"), rows, empty="No entries.")

    emit({"transactions": [transaction_document(entry) for entry in found]}, people)
    if opened is not None and (start is None or start <= opened):
        hint(f"Entries up to {when(opened)} are archived.")


def _plot(balances: list[int]) -> list[str]:
    """Draw the balance after each entry as bars, oldest first."""
    top = max([1, *balances])
    return [f"{number(value):>12}  {'█' * max(0, value * 60 // top)}" for value in balances]


@app.command("list")
def list_(
    plan: Annotated[str | None, typer.Option(help="Only users on this plan.")] = None,
    below: Annotated[int | None, typer.Option(help="Only with less available.")] = None,
    limit: context.Limit = 50,
) -> None:
    """List users' credits. Example: polarcredits credits list --below 100"""
    from polarcredits.ledger.views import balances

    with context.ledger() as ledger:
        if plan is not None:
            ledger.catalog.plan(plan)
        found = balances(ledger, plan=plan, below=below, limit=limit)
    document = {
        "users": [
            {
                "user": user,
                "plan": of,
                "balance": balance.balance,
                "available": balance.available,
            }
            for user, of, balance in found
        ]
    }
    rows = [(user, of, number(b.balance), number(b.available)) for user, of, b in found]
    emit(
        document,
        lambda: table(("user", "plan", "balance", "available"), rows, empty="No such users."),
    )
