"""Plans, packs, operations and policies: the catalog, read from TOML and the environment (docs/rules.md §3).

Every problem of a file is found and told by path in one go; unknown keys name the nearest known one.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from polarcredits.errors import ConfigError, NotFound
from polarcredits.periods import Interval, parse_duration

INTERVALS: tuple[Interval, ...] = ("day", "week", "month", "year", "lifetime")
MOST_CREDITS = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A named allowance: `credits` every `interval`, sold as one or more Polar products."""

    name: str
    credits: int
    interval: Interval
    product_ids: tuple[str, ...] = ()
    rollover: int | None = 0
    """The most credits carried into the next period; None carries all."""
    trial_credits: int = 0
    per_seat: bool = False
    renewal_grace: timedelta = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """A one-time product that grants credits when its order is paid."""

    name: str
    credits: int
    product_ids: tuple[str, ...] = ()
    expires_after: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What becomes of credits that were used but refunded, and what a raise adds."""

    clawback: str = "owed"
    upgrade: str = "prorated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """All that is sold, and what operations cost."""

    default_plan: str
    plans: tuple[Plan, ...]
    packs: tuple[Pack, ...] = ()
    operations: Mapping[str, int] = field(default_factory=dict)
    policy: Policy = Policy()

    def plan(self, name: str) -> Plan:
        """Return the plan called *name*, or raise NotFound."""
        for plan in self.plans:
            if plan.name == name:
                return plan
        known = ", ".join(plan.name for plan in self.plans)
        raise NotFound(f"No plan {name!r}; there are: {known}.", plan=name)

    def pack(self, name: str) -> Pack:
        """Return the pack called *name*, or raise NotFound."""
        for pack in self.packs:
            if pack.name == name:
                return pack
        known = ", ".join(pack.name for pack in self.packs) or "none"
        raise NotFound(f"No pack {name!r}; there are: {known}.", pack=name)

    @property
    def default(self) -> Plan:
        """The plan that everyone has."""
        return self.plan(self.default_plan)

    def plan_for_product(self, product_id: str) -> Plan | None:
        """Return the plan that a Polar product sells."""
        return next((plan for plan in self.plans if product_id in plan.product_ids), None)

    def pack_for_product(self, product_id: str) -> Pack | None:
        """Return the pack that a Polar product sells."""
        return next((pack for pack in self.packs if product_id in pack.product_ids), None)

    @property
    def product_ids(self) -> tuple[str, ...]:
        """Every Polar product that a plan or pack is sold as."""
        sold = [plan.product_ids for plan in self.plans] + [pack.product_ids for pack in self.packs]
        return tuple(id for ids in sold for id in ids)

    def cost(self, operation: str) -> int:
        """Return what one call of *operation* costs, in credits; 1 unless configured."""
        return self.operations.get(operation, 1)


FREE = Plan(name="free", credits=1000, interval="lifetime")
PRO = Plan(name="pro", credits=5000, interval="month")


def parse_catalog(
    toml_text: str | None, *, pro_product_id: str | None, where: str = "polarcredits.toml"
) -> Catalog:
    """Return the catalog of a configuration file, or of none; ConfigError lists every problem."""
    if toml_text is None:
        return _with_product(Catalog(default_plan="free", plans=(FREE, PRO)), pro_product_id)
    try:
        document = tomllib.loads(toml_text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid TOML: {error}", path=where) from error
    reader = _Reader(document)
    written = reader.catalog()
    catalog = _with_product(written, pro_product_id)
    _check_products(catalog, reader.problems, added=None if catalog == written else pro_product_id)
    if reader.problems:
        listed = "; ".join(reader.problems)
        raise ConfigError(f"{where}: {listed}", path=where, problems=reader.problems)
    return catalog


def _with_product(catalog: Catalog, product_id: str | None) -> Catalog:
    if not product_id or any(product_id in plan.product_ids for plan in catalog.plans if plan.name == "pro"):
        return catalog
    plans = tuple(
        replace(plan, product_ids=(*plan.product_ids, product_id)) if plan.name == "pro" else plan
        for plan in catalog.plans
    )
    return replace(catalog, plans=plans)


def _check_products(catalog: Catalog, problems: list[str], *, added: str | None) -> None:
    seen: dict[str, str] = {}
    offers: list[tuple[str, tuple[str, ...]]] = [
        *((f"plans.{plan.name}", plan.product_ids) for plan in catalog.plans),
        *((f"packs.{pack.name}", pack.product_ids) for pack in catalog.packs),
    ]
    for path, products in offers:
        for product in products:
            if product in seen:
                why = " (POLAR_PRO_PRODUCT_ID names it for plans.pro)" if product == added else ""
                problems.append(f"{path}.product_ids: {product!r} belongs to {seen[product]} too{why}")
            seen[product] = path


class _Reader:
    """Reads a parsed file, collecting problems by path."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.problems: list[str] = []

    def catalog(self) -> Catalog:
        root = self.document
        self.keys("", root, ("default_plan", "plans", "packs", "operations", "policy"))
        default = self.text("default_plan", root.get("default_plan", "free"))
        plans = [self.plan(name, body) for name, body in self.table("plans").items()]
        if all(plan.name != default for plan in plans):
            if default == "free":
                plans.insert(0, FREE)
            else:
                self.problems.append(f"default_plan: there is no plan {default!r}")
        for plan in plans:
            if plan.name == default and plan.interval != "lifetime":
                path = f"plans.{plan.name}.interval"
                self.problems.append(f'{path}: the default plan must be "lifetime"')
        policy = self.table("policy")
        self.keys("policy", policy, ("clawback", "upgrade"))
        return Catalog(
            default_plan=default,
            plans=tuple(plans),
            packs=tuple(self.pack(name, body) for name, body in self.table("packs").items()),
            operations={
                self.name("operations", name): self.number(f"operations.{name}", cost)
                for name, cost in self.table("operations").items()
            },
            policy=Policy(
                clawback=self.one_of(
                    "policy.clawback", policy.get("clawback", "owed"), ("owed", "floor", "debt")
                ),
                upgrade=self.one_of(
                    "policy.upgrade",
                    policy.get("upgrade", "prorated"),
                    ("prorated", "full", "paid"),
                ),
            ),
        )

    def plan(self, name: str, body: object) -> Plan:
        path = f"plans.{self.name('plans', name)}"
        table = self.as_table(path, body)
        known = tuple(Plan.__slots__)[1:]
        self.keys(path, table, known)
        for key in ("credits", "interval"):
            if key not in table:
                self.problems.append(f"{path}.{key}: missing")
        interval = self.one_of(f"{path}.interval", table.get("interval", "month"), INTERVALS)
        rollover = table.get("rollover", 0)
        per_seat = table.get("per_seat", False)
        if not isinstance(per_seat, bool):
            self.problems.append(f"{path}.per_seat: {per_seat!r} is not true or false")
        grace = self.duration(f"{path}.renewal_grace", table.get("renewal_grace", "1h"))
        return Plan(
            name=name,
            credits=self.number(f"{path}.credits", table.get("credits", 0)),
            interval=next(each for each in INTERVALS if each == interval),
            product_ids=self.products(path, table),
            rollover=None if rollover == "all" else self.number(f"{path}.rollover", rollover),
            trial_credits=self.number(f"{path}.trial_credits", table.get("trial_credits", 0)),
            per_seat=per_seat is True,
            renewal_grace=grace,
        )

    def pack(self, name: str, body: object) -> Pack:
        path = f"packs.{self.name('packs', name)}"
        table = self.as_table(path, body)
        self.keys(path, table, ("credits", "product_ids", "expires_after"))
        if "credits" not in table:
            self.problems.append(f"{path}.credits: missing")
        after = table.get("expires_after")
        return Pack(
            name=name,
            credits=self.number(f"{path}.credits", table.get("credits", 0)),
            product_ids=self.products(path, table),
            expires_after=None if after is None else self.duration(f"{path}.expires_after", after),
        )

    def keys(self, path: str, table: Mapping[str, object], known: tuple[str, ...]) -> None:
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
                at = f"{path}.{key}" if path else key
                self.problems.append(f"{at}: unknown key; did you mean {near[0]}?")

    def table(self, key: str) -> dict[str, Any]:
        return self.as_table(key, self.document.get(key, {}))

    def as_table(self, path: str, value: object) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        self.problems.append(f"{path}: {value!r} is not a table")
        return {}

    def name(self, path: str, name: str) -> str:
        if not name.strip() or not name.isprintable() or name != name.strip():
            self.problems.append(f"{path}: {name!r} cannot be a name")
        return name

    def text(self, path: str, value: object) -> str:
        if isinstance(value, str) and value:
            return value
        self.problems.append(f"{path}: {value!r} is not a text")
        return ""

    def number(self, path: str, value: object) -> int:
        if type(value) is int and 0 <= value <= MOST_CREDITS:
            return value
        self.problems.append(f"{path}: {value!r} is not a whole number from 0 to 2^53")
        return 0

    def one_of(self, path: str, value: object, known: tuple[str, ...]) -> str:
        if isinstance(value, str) and value in known:
            return value
        shown = f'"{value}"' if isinstance(value, str) else repr(value)
        self.problems.append(f"{path}: {shown} is not one of {', '.join(known)}")
        return known[0]

    def duration(self, path: str, value: object) -> timedelta:
        try:
            return parse_duration(value if isinstance(value, str) else repr(value))
        except ValueError as error:
            self.problems.append(f"{path}: {error}")
            return timedelta(0)

    def products(self, path: str, table: Mapping[str, object]) -> tuple[str, ...]:
        value = table.get("product_ids", [])
        if isinstance(value, list) and all(isinstance(id, str) and id.strip() for id in value):
            return tuple(value)
        self.problems.append(f"{path}.product_ids: {value!r} is not a list of product ids")
        return ()
