"""`polarcredits checkout`, `portal` and `sync`: what needs Polar's API."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polarcredits.cli import context
from polarcredits.cli.output import counted, emit, hint, number, progress, say, table, when
from polarcredits.errors import UnknownUser

if TYPE_CHECKING:
    from polarcredits.checkouts import Contact
    from polarcredits.ledger.readings import Change
    from polarcredits.ledger.values import Balance
    from polarcredits.polar_api import PolarApi
    from polarcredits.polar_values import CheckoutRow

Open = Annotated[bool, typer.Option("--open/--no-open", help="Open a browser (on a terminal only).")]


def checkout(
    plan: Annotated[str | None, typer.Option(help="The plan to sell.")] = None,
    pack: Annotated[str | None, typer.Option(help="The pack to sell, in place of a plan.")] = None,
    user: Annotated[str | None, typer.Option(help="Who buys: your own user id.")] = None,
    email: Annotated[str | None, typer.Option(help="The buyer's e-mail address.")] = None,
    success_url: Annotated[
        str | None, typer.Option(help="Where the buyer lands; {CHECKOUT_ID} is filled in.")
    ] = None,
    return_url: Annotated[str | None, typer.Option(help="Where the back button leads.")] = None,
    discount: Annotated[str | None, typer.Option(help="The id of a discount.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="K=V, kept on the order.")] = None,
    open_: Open = True,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is paid or has expired.")] = False,
) -> None:
    """Open a checkout. Example: polarcredits checkout --plan pro --user alice --email a@example.com"""
    if (plan is None) == (pack is None):
        raise typer.BadParameter("give either --plan or --pack")
    from polarcredits.checkouts import Wishes, check_metadata, follow, offer_of, open_checkout, success_page
    from polarcredits.userids import check_new_user

    known = context.settings()
    offer = offer_of(known.catalog, plan=plan, pack=pack)
    extra = context.metadata_of(metadata, "--metadata")
    check_metadata(extra)
    if user is not None:
        check_new_user(user)
    landing = success_url or success_page(known)
    wishes = Wishes(success_url=landing, return_url=return_url, discount_id=discount, metadata=extra)
    with context.polar() as polar:
        opened = open_checkout(
            polar,
            offer,
            user=user,
            contact=lambda: _contact(user, email),
            wishes=wishes,
            customers=lambda: _linked(user),
        )
        if wait:
            hint(f"{opened.url}\nWaiting for the payment. Ctrl-C ends the waiting, not the checkout.")
        _show_in_browser(opened.url, open_)
        if wait:
            opened = follow(polar, opened)
        bought = _learn(polar, opened, user) if wait and opened.status == "succeeded" else None
    _tell_checkout(opened, plan=plan, pack=pack, user=user, bought=bought)


def _contact(user: str | None, email: str | None) -> Contact:
    """Return the buyer's e-mail address and name, as given or as the ledger knows them."""
    from polarcredits.checkouts import Contact

    if user is None:
        return Contact(email=email)
    from polarcredits.ledger import views

    try:
        with context.ledger() as ledger:
            known = views.show_user(ledger, user)
    except UnknownUser:
        return Contact(email=email)
    return Contact(email=email or known.email, name=known.name)


def _linked(user: str | None) -> tuple[str, ...]:
    """Return the customers that were linked to the buyer by hand."""
    from polarcredits.ledger.readings import linked_customers

    if user is None:
        return ()
    with context.ledger() as ledger:
        return linked_customers(ledger, user)


def _learn(polar: PolarApi, opened: CheckoutRow, user: str | None) -> tuple[str, Balance] | None:
    """Take what a paid checkout has brought, and return whose balance it is, and what it is now."""
    from polarcredits.checkouts import wait_for_order
    from polarcredits.ledger.readings import owner_of
    from polarcredits.sync import sync_customer

    if opened.customer_id is None or not wait_for_order(polar, opened):
        return None
    with context.ledger() as ledger:
        ledger.actor = "sync"
        sync_customer(ledger, polar, opened.customer_id, environment=context.settings().environment)
        owner = user or owner_of(ledger, opened.customer_id)
        return owner, ledger.balance(owner)


def _tell_checkout(
    opened: CheckoutRow,
    *,
    plan: str | None,
    pack: str | None,
    user: str | None,
    bought: tuple[str, Balance] | None,
) -> None:
    owner, balance = bought or (user, None)
    document = {
        "id": opened.id,
        "url": opened.url,
        "expires_at": opened.expires_at,
        "status": opened.status,
        "plan": plan,
        "pack": pack,
        "user": owner,
        "balance": balance.balance if balance else None,
        "available": balance.available if balance else None,
    }

    def people() -> None:
        if opened.status == "open":
            say(opened.url)
            hint(f"The link dies at {when(opened.expires_at)}.")
        elif balance is not None:
            say(
                f"Paid. {owner} has {number(balance.balance)} credits, {number(balance.available)} available."
            )
        elif opened.status == "succeeded":
            say("Paid; Polar does not show the order yet. Take it later with: polarcredits sync")
        else:
            late = "" if opened.status in ("failed", "expired") else "; what it may bring yet, sync finds"
            say(f"The checkout has ended: {opened.status}{late}.")
        if owner is None or owner.startswith("polar:"):
            hint("Nobody is named: what is bought goes to an account polar:<customer>; see users link.")

    emit(document, people)


def _show_in_browser(url: str, wanted: bool) -> None:
    if wanted and sys.stdout.isatty() and not context.options.json:
        typer.launch(url)


def portal(
    user: str,
    open_: Open = True,
    return_url: Annotated[str | None, typer.Option(help="Where the back button leads.")] = None,
) -> None:
    """Make a link to the customer portal. Example: polarcredits portal alice"""
    from polarcredits.checkouts import open_portal

    with context.polar() as polar:
        session = open_portal(polar, user, customers=lambda: _customers(user), return_url=return_url)
    _show_in_browser(session.url, open_)
    document = {"url": session.url, "expires_at": session.expires_at, "user": user}

    def people() -> None:
        say(session.url)
        hint(f"The link dies at {when(session.expires_at)}.")

    emit(document, people)


def _customers(user: str) -> tuple[str, ...]:
    from polarcredits.ledger.readings import known_of

    with context.ledger() as ledger:
        return known_of(ledger, user).customers


def sync(
    user: Annotated[str | None, typer.Argument(help="Only this user.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only what is newer (and all customers): 30d, or a time (RFC 3339).")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Report, but change nothing.")] = False,
) -> None:
    """Bring the ledger in step with Polar. Example: polarcredits sync --since 30d"""
    if user is not None and since is not None:
        raise typer.BadParameter("give a user or --since, not both")
    from polarcredits.sync import sync as synced

    newer = context.since_of(since, datetime.now(UTC))
    environment = context.settings().environment
    with context.polar() as polar, context.ledger() as ledger, progress("Asking Polar") as done:
        ledger.actor = "sync"
        report = synced(
            ledger, polar, environment=environment, user=user, since=newer, dry_run=dry_run, progress=done
        )
    document = {
        "checked": report.checked,
        "changed": [_change(each) for each in report.changed],
        "failed": report.failed,
    }

    def people() -> None:
        rows = [(each.user or "-", each.kind, _difference(each)) for each in report.changed]
        if rows:
            table(("user", "what", "difference"), rows, empty="")
        if report.failed:
            table(
                ("what", "id", "why it failed"),
                [(each["kind"], each["id"], each["error"]) for each in report.failed],
                empty="",
            )
        checked = ", ".join(f"{number(count)} {kind}" for kind, count in report.checked.items())
        dry = " (dry run: nothing was changed)" if dry_run else ""
        say(f"Checked {checked}. {counted(len(report.changed), 'difference')}{dry}.")

    emit(document, people)
    if report.failed:
        raise typer.Exit(9)


def _change(change: Change) -> dict[str, Any]:
    return {
        "user": change.user,
        "kind": change.kind,
        "id": change.id,
        "before": change.before,
        "after": change.after,
    }


def _difference(change: Change) -> str:
    """Return what is other than before, in a line."""
    before, after = change.before or {}, change.after or {}
    told = [
        f"{key} {_word(before.get(key))} → {_word(value)}" if change.before else f"{key} {_word(value)}"
        for key, value in after.items()
        if before.get(key) != value
    ]
    return ("" if change.before else "new: ") + ", ".join(told)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
