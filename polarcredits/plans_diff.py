"""The catalog against Polar's products and what the ledger has seen sold (docs/rules.md §§3, 4.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from polarcredits.findings import Finding
from polarcredits.plans import Catalog, Pack, Plan
from polarcredits.polar_values import Product

_DAYS = {"day": 1, "week": 7, "month": 30, "year": 365}


def compare(
    catalog: Catalog, products: Sequence[Product], unknown: Iterable[str], environment: str
) -> list[Finding]:
    """Return what is right and wrong with plans and packs; *unknown* was bought, but is in no plan."""
    known = {product.id: product for product in products}
    findings = [f for plan in catalog.plans for f in _plan(plan, catalog, known, environment)]
    findings += [f for pack in catalog.packs for f in _pack(pack, known, environment)]
    bought = set(unknown) - set(catalog.product_ids)
    for id in sorted(bought):
        name = f" ({known[id].name})" if id in known else ""
        findings.append(
            Finding(
                name=f"product {id}",
                status="fail",
                detail=f"was bought{name}, but is in no plan or pack: it grants nothing",
                fix="Add it to product_ids in polarcredits.toml, then run: polarcredits refill",
            )
        )
    for product in products:
        if not product.archived and product.id not in catalog.product_ids and product.id not in bought:
            findings.append(
                Finding(
                    name=f"product {product.id}",
                    status="warn",
                    detail=f"{product.name!r} is on sale, but in no plan or pack",
                    fix="Add it to product_ids in polarcredits.toml, or archive it in Polar.",
                )
            )
    return findings


def _plan(plan: Plan, catalog: Catalog, known: Mapping[str, Product], environment: str) -> Iterator[Finding]:
    name = f"plan {plan.name}"
    if not plan.product_ids and plan.name != catalog.default_plan:
        also = " or POLAR_PRO_PRODUCT_ID" if plan.name == "pro" else ""
        yield Finding(
            name=name,
            status="warn",
            detail="is sold as no product",
            fix=f"Set plans.{plan.name}.product_ids in polarcredits.toml{also}.",
        )
    for id in plan.product_ids:
        product = known.get(id)
        if product is None:
            yield _missing(name, id, environment)
        elif product.archived:
            yield _archived(name, product)
        elif plan.interval == "lifetime":
            yield Finding(name=name, status="ok", detail=_described(product))
        elif product.interval is None:
            yield Finding(
                name=name,
                status="fail",
                detail=f"{product.name!r} ({id}) is sold once, but the plan refills every {plan.interval}",
                fix="Use a recurring product, or make it a pack.",
            )
        elif _length(product) < _DAYS[plan.interval]:
            yield Finding(
                name=name,
                status="warn",
                detail=f"{product.name!r} is billed every {_billed(product)}, the plan refills every "
                f"{plan.interval}: each billing period gets the whole {plan.credits} credits",
                fix=f"Make plans.{plan.name}.interval no longer than the billing period.",
            )
        else:
            yield Finding(name=name, status="ok", detail=_described(product))


def _pack(pack: Pack, known: Mapping[str, Product], environment: str) -> Iterator[Finding]:
    name = f"pack {pack.name}"
    if not pack.product_ids:
        yield Finding(
            name=name,
            status="warn",
            detail="is sold as no product",
            fix=f"Set packs.{pack.name}.product_ids in polarcredits.toml.",
        )
    for id in pack.product_ids:
        product = known.get(id)
        if product is None:
            yield _missing(name, id, environment)
        elif product.archived:
            yield _archived(name, product)
        elif product.interval is not None:
            yield Finding(
                name=name,
                status="fail",
                detail=f"{product.name!r} ({id}) is a subscription, but a pack is sold once",
                fix="Use a one-time product, or make it a plan.",
            )
        else:
            yield Finding(name=name, status="ok", detail=_described(product))


def _missing(name: str, id: str, environment: str) -> Finding:
    return Finding(
        name=name,
        status="fail",
        detail=f"product {id} is not in Polar's {environment}",
        fix="Check the id, and that POLAR_ENVIRONMENT is where it was made.",
    )


def _archived(name: str, product: Product) -> Finding:
    return Finding(
        name=name,
        status="warn",
        detail=f"{product.name!r} ({product.id}) is archived: nobody can buy it, who has it keeps it",
        fix="Restore it in Polar, or add the product that took its place.",
    )


def _described(product: Product) -> str:
    price = "" if product.price_cents is None else f", {product.price_cents / 100:,.2f} {product.currency}"
    return f"{product.name!r}, {_billed(product) if product.interval else 'once'}{price}"


def _billed(product: Product) -> str:
    count = "" if product.interval_count == 1 else f"{product.interval_count} "
    return f"{count}{product.interval}"


def _length(product: Product) -> int:
    return _DAYS.get(product.interval or "", 0) * product.interval_count
