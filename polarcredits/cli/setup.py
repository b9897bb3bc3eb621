"""`polarcredits init`: a configuration file, a database, and what to do next."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polarcredits.cli import context
from polarcredits.cli.output import emit, hint, say
from polarcredits.errors import ConfigError, PolarCreditsError

if TYPE_CHECKING:
    from polarcredits.polar_values import Product
    from polarcredits.settings import Settings

FILE = "polarcredits.toml"


def init(
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take what is likely.")] = False,
) -> None:
    """Write polarcredits.toml and make the database. Example: polarcredits init"""
    from polarcredits.settings import named_config

    asks = not yes and sys.stdin.isatty() and sys.stdout.isatty() and not context.options.json
    if not yes and not asks:
        raise typer.BadParameter("there is no terminal to ask on: give --yes")
    path = named_config(config=context.options.config) or Path.cwd() / FILE
    undecided: list[str] = []
    if path.exists():
        written = False
    else:
        known = context.settings(may_lack_file=True)
        if known.access_token is None and asks:
            _ask_token()
            known = context.settings(may_lack_file=True)
        products = _products(known)
        plan = _choose([each for each in products if each.interval], "plan pro", known.pro_product_id, asks)
        once = [each for each in products if not each.interval]
        pack = _choose(once, "a pack of credits", None, asks) if asks else None
        credits = typer.prompt("How many credits does it give?", type=int, default=1000) if pack else 0
        _write(path, _toml(plan, pack, credits))
        written = True
        if not asks:
            undecided = [
                f"packs.NAME for {each.name!r} ({each.id}): sold once; say how many credits it gives"
                for each in once
            ]
    context.options.config = path
    known = context.settings()
    _make_database(known)
    missing = _missing(known) + undecided
    following = _next(missing)
    document = {
        "config": str(path),
        "written": written,
        "database": known.database_url if known.database_url.startswith("sqlite") else "PostgreSQL",
        "missing": missing,
        "next": following,
    }

    def people() -> None:
        say(f"{path} is {'written' if written else 'there already; it is left as it is'}.")
        say(f"The database is ready: {document['database']}")
        for each in missing:
            say(f"Still missing: {each}")
        say("Next:")
        for line in following:
            say(f"  {line}")

    emit(document, people)


def _ask_token() -> None:
    """Ask for the access token, and keep it in `.env` for its owner alone."""
    from polarcredits.dotenv_file import dotenv_path, save

    say("An organization access token lets polarcredits see your products (Polar: Settings).")
    token = typer.prompt("Access token (empty: later)", default="", hide_input=True, show_default=False)
    if token.strip():
        path = dotenv_path(Path.cwd(), None)
        save(path, "POLAR_ACCESS_TOKEN", token.strip())
        say(f"Kept in {path}, which only you can read.")


def _products(known: Settings) -> list[Product]:
    """Return what the organization sells, or nothing where Polar cannot be asked."""
    if known.access_token is None:
        return []
    try:
        with context.polar() as polar:
            return [product for product in polar.products() if not product.archived]
    except PolarCreditsError as error:
        hint(f"Warning: {error.message}")
        return []


def _choose(products: Sequence[Product], what: str, given: str | None, asks: bool) -> Product | str | None:
    """Return the product that is *what*: the one that is set, the only one, or the one chosen."""
    named = next((each for each in products if each.id == given), None)
    if named is not None or given is not None:
        return named or given
    if not asks:
        return products[0] if len(products) == 1 else None
    if not products:
        return None
    say(f"Which product is {what}?")
    for number, product in enumerate(products, 1):
        price = "" if product.price_cents is None else f", {product.price_cents / 100:,.2f}"
        say(f"  {number}. {product.name} ({product.interval or 'once'}{price} {product.currency})")
    say("  0. none of these")
    chosen = typer.prompt("Number", type=int, default=1)
    return products[chosen - 1] if 0 < chosen <= len(products) else None


def _toml(plan: Product | str | None, pack: Product | str | None, credits: int) -> str:
    """Return the text of a configuration file; an id is written as JSON, which TOML reads."""

    def ids(product: Product | str | None) -> str:
        id = product if isinstance(product, str) or product is None else product.id
        return json.dumps([id] if id else [])

    text = f"""default_plan = "free"

[plans.free]
credits = 1000
interval = "lifetime"

[plans.pro]
credits = 5000
interval = "month"
product_ids = {ids(plan)}
"""
    if pack is not None:
        text += f"""
[packs.small]
credits = {credits}
product_ids = {ids(pack)}
"""
    return (
        text
        + """
[operations]
api_call = 1
"""
    )


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.", path=str(path)) from error


def _make_database(known: Settings) -> None:
    from polarcredits.ledger import schema
    from polarcredits.ledger.database import Database

    schema.make_if_absent(known.database_url)
    database = Database(known.database_url)
    try:
        schema.upgrade(database)
    finally:
        database.close()


def _missing(known: Settings) -> list[str]:
    missing = []
    if known.access_token is None:
        missing.append("POLAR_ACCESS_TOKEN: make an organization access token in Polar's settings")
    if not any(plan.product_ids for plan in known.catalog.plans):
        missing.append("plans.pro.product_ids, or POLAR_PRO_PRODUCT_ID: the product that sells the plan")
    if not known.webhook_secrets:
        missing.append("POLAR_WEBHOOK_SECRET: polarcredits webhooks register saves it")
    return missing


def _next(missing: Sequence[str]) -> list[str]:
    """Return the two commands that come next."""
    if any(each.startswith("POLAR_ACCESS_TOKEN") for each in missing):
        return ["polarcredits demo", "polarcredits doctor"]
    if any(each.startswith("POLAR_WEBHOOK_SECRET") for each in missing):
        return ["polarcredits webhooks register https://YOUR-HOST/webhooks/polar", "polarcredits doctor"]
    return ["polarcredits doctor", "polarcredits checkout --plan pro --user USER --email ADDRESS"]
