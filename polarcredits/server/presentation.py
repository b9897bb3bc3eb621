"""What pages say: amounts, money, times and words for what the ledger holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from polarcredits.ledger.values import Transaction
from polarcredits.ledger.views import Statement
from polarcredits.lots import Lot
from polarcredits.plans import Catalog, Pack, Plan
from polarcredits.polar_values import Product

WITHOUT_CENTS = frozenset(
    [
        "BIF",
        "CLP",
        "DJF",
        "GNF",
        "JPY",
        "KMF",
        "KRW",
        "MGA",
        "PYG",
        "RWF",
        "UGX",
        "VND",
        "VUV",
        "XAF",
        "XOF",
        "XPF",
    ]
)
"""The currencies whose amounts Polar counts in whole units; all others have hundredths."""
_SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥"}
_SOURCES = {
    "lifetime": "Included for good",
    "allowance": "Plan allowance",
    "rollover": "Carried over",
    "trial": "Trial",
    "pack": "Pack",
    "manual": "Extra credits",
}
_ENTRIES = {
    "grant": "Added",
    "deduct": "Used",
    "reversal": "Given back",
    "expire": "Expired",
    "clawback": "Taken back after a refund",
    "adjust": "Adjusted",
    "transfer": "Moved between accounts",
}
_PAYMENTS = {
    "paid": "Paid",
    "pending": "Pending",
    "refunded": "Refunded",
    "partially_refunded": "Partly refunded",
}
_EVERY = {"day": "every day", "week": "every week", "month": "every month", "year": "every year"}
_UNITS = ((timedelta(days=1), "day"), (timedelta(hours=1), "hour"), (timedelta(minutes=1), "minute"))


def number(value: int) -> str:
    """Return a number with thousands separators."""
    return f"{value:,}"


def signed(value: int) -> str:
    """Return a change, with its sign."""
    return f"+{number(value)}" if value > 0 else number(value)


def money(minor: int, currency: str) -> str:
    """Return an amount of a currency's smallest unit, as Polar counts it: $20.00, ¥2,000, CHF 5.50."""
    code = currency.upper()
    whole = f"{abs(minor):,}" if code in WITHOUT_CENTS else f"{abs(minor) // 100:,}.{abs(minor) % 100:02}"
    sign = "-" if minor < 0 else ""
    symbol = _SYMBOLS.get(code)
    return f"{sign}{symbol}{whole}" if symbol else f"{sign}{code} {whole}"


def when(time: datetime) -> str:
    """Return a time to the minute, with its zone: 23 December 2026, 05:00 UTC."""
    return f"{time.day} {time:%B %Y, %H:%M} UTC"


def duration(span: timedelta) -> str:
    """Return a duration in its largest whole unit."""
    for unit, word in _UNITS:
        if span >= unit and not span % unit:
            count = span // unit
            return f"{count:,} {word}{'' if count == 1 else 's'}"
    return f"{int(span.total_seconds()):,} seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One thing on the pricing page."""

    kind: str
    name: str
    credits: str
    price: str | None
    """None where it is not known: it is shown at the checkout."""
    notes: tuple[str, ...]
    current: bool
    sold: bool
    """Whether a product is set for it."""
    buyable: bool
    """Whether Polar would sell it, as far as is known."""


def cards(catalog: Catalog, products: Mapping[str, Product] | None, current: str | None) -> list[Card]:
    """Return the plans, then the packs; *current* is the plan that the visitor has."""
    plans = [_plan_card(plan, catalog, products, current) for plan in catalog.plans]
    return plans + [_pack_card(pack, products) for pack in catalog.packs]


def _plan_card(
    plan: Plan, catalog: Catalog, products: Mapping[str, Product] | None, current: str | None
) -> Card:
    default = plan.name == catalog.default_plan
    notes: list[str] = []
    if plan.per_seat:
        notes.append("For each seat")
    if plan.trial_credits:
        notes.append(f"{number(plan.trial_credits)} credits while a trial lasts")
    if plan.rollover is None:
        notes.append("Unused credits are carried over")
    elif plan.rollover:
        notes.append(f"Up to {number(plan.rollover)} unused credits are carried over")
    if default:
        notes.append("For everybody, whatever plan you buy later")
    product = _on_sale(plan.product_ids, products, recurring=plan.interval != "lifetime")
    return Card(
        kind="plan",
        name=plan.name,
        credits=f"{number(plan.credits)} credits {_EVERY.get(plan.interval, 'once')}",
        price="Free" if default and not plan.product_ids else _price(product),
        notes=tuple(notes),
        current=plan.name == current,
        sold=bool(plan.product_ids),
        buyable=bool(plan.product_ids) and (products is None or product is not None),
    )


def _pack_card(pack: Pack, products: Mapping[str, Product] | None) -> Card:
    expiry = f"Valid for {duration(pack.expires_after)}" if pack.expires_after else "Never expires"
    product = _on_sale(pack.product_ids, products, recurring=False)
    return Card(
        kind="pack",
        name=pack.name,
        credits=f"{number(pack.credits)} credits, paid once",
        price=_price(product),
        notes=(expiry,),
        current=False,
        sold=bool(pack.product_ids),
        buyable=bool(pack.product_ids) and (products is None or product is not None),
    )


def _on_sale(
    ids: Sequence[str], products: Mapping[str, Product] | None, *, recurring: bool
) -> Product | None:
    """Return the first of the products that can be bought, as far as Polar's are known."""
    found = (products[id] for id in ids if products and id in products)
    return next(
        (each for each in found if not each.archived and recurring == (each.interval is not None)), None
    )


def _price(product: Product | None) -> str | None:
    if product is None or product.price_cents is None or len(product.currency) != 3:
        return None
    price = "Free" if product.price_cents == 0 else money(product.price_cents, product.currency)
    if product.interval is None or product.price_cents == 0:
        return price
    every = (
        product.interval if product.interval_count == 1 else f"{product.interval_count} {product.interval}s"
    )
    return f"{price} / {every}"


@dataclass(frozen=True, slots=True)
class Line:
    """A fact with a time, such as when a plan renews."""

    text: str
    at: datetime | None = None


def outlook(told: Statement) -> list[Line]:
    """Return what will become of the subscriptions and the allowance."""
    lines: list[Line] = []
    for shown in told.subscriptions:
        fact, plan = shown.fact, shown.plan or "Another product"
        ends = fact.ends_at or (fact.current_period_end if fact.cancel_at_period_end else None)
        if fact.status == "paused":
            lines.append(Line(f"{plan}: paused"))
        elif ends is not None:
            lines.append(Line(f"{plan}: ends, and is not renewed", ends))
        elif fact.status == "trialing":
            lines.append(Line(f"{plan}: trial until", fact.trial_end or fact.current_period_end))
        elif fact.status == "past_due":
            lines.append(Line(f"{plan}: the last payment failed. Please check your payment method."))
        else:
            lines.append(Line(f"{plan}: renews", fact.current_period_end))
    if told.next_refill_at is not None:
        lines.append(Line("Next credits", told.next_refill_at))
    return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of a table: a text, a time, amounts."""

    text: str
    at: datetime | None
    amount: str
    beside: str


def _source(lot: Lot) -> str:
    word = _SOURCES.get(lot.source, lot.source)
    return f"{word} ({lot.plan})" if lot.plan else word


def grant_rows(lots: Sequence[Lot]) -> list[Row]:
    """Return the live grants, in the order in which they are spent."""
    return [
        Row(text=_source(lot), at=lot.expires_at, amount=number(lot.remaining), beside=number(lot.amount))
        for lot in lots
    ]


def entry_rows(entries: Sequence[Transaction], lots: Sequence[Lot]) -> list[Row]:
    """Return transactions, with the operation or live grant; what staff wrote beside them stays with us."""
    sources = {str(lot.id): _source(lot) for lot in lots}
    rows = []
    for entry in entries:
        about = entry.operation or sources.get(entry.grant_id or "")
        word = _ENTRIES.get(entry.type, entry.type)
        rows.append(
            Row(
                text=f"{word}: {about}" if about else word,
                at=entry.occurred_at,
                amount=signed(entry.amount),
                beside=number(entry.balance_after),
            )
        )
    return rows


def payment_rows(catalog: Catalog, payments: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return payments: what was bought, and what is left paid of it."""
    rows = []
    for payment in payments:
        product, currency = payment["product_id"] or "", payment["currency"]
        sold = catalog.plan_for_product(product) or catalog.pack_for_product(product)
        refunded = payment["refunded_cents"]
        status = _PAYMENTS.get(payment["status"], str(payment["status"]).replace("_", " ").capitalize())
        rows.append(
            Row(
                text=sold.name if sold else "Another product",
                at=payment["created_at"],
                amount=money(payment["amount_cents"], currency),
                beside=f"{status}: {money(refunded, currency)}" if refunded else status,
            )
        )
    return rows
