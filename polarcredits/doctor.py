"""`doctor`: what keeps the credits from being right, each with its fix.

Nothing is changed, at Polar neither: whether a token may write is found out by asking for what
cannot be made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime, timedelta

from polarcredits.errors import (
    ConfigError,
    DatabaseBusy,
    PolarCreditsError,
    PolarRefused,
    PolarUnavailable,
)
from polarcredits.findings import Finding, Status
from polarcredits.ledger.health import examine
from polarcredits.ledger.ledger import Ledger
from polarcredits.plans_diff import compare
from polarcredits.polar_api import API_VERSION, PolarApi
from polarcredits.polar_values import Endpoint, Page
from polarcredits.settings import Settings
from polarcredits.webhooks.endpoints import EVENTS, is_right

_CRON_LATE = timedelta(hours=25)
_LOG = timedelta(days=2)
_SKEW_WARN, _SKEW_FAIL = timedelta(seconds=30), timedelta(minutes=4)
_REGISTER = "polarcredits webhooks register https://YOUR-HOST/webhooks/polar"


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Check what is configured."""
    where = str(settings.config_path) if settings.config_path else "no polarcredits.toml: the built-in plans"
    yield Finding(name="configuration", status="ok", detail=f"{where}; Polar's {settings.environment}")
    for name, known in (
        ("POLAR_ACCESS_TOKEN", settings.access_token is not None),
        ("POLAR_WEBHOOK_SECRET", bool(settings.webhook_secrets)),
    ):
        if not known:
            fix = f"Set {name} in the environment or in .env." if name.endswith("TOKEN") else _REGISTER
            yield Finding(name=name, status="fail", detail="is not set", fix=fix)
    yield from _check_catalog(settings, where)


def _check_catalog(settings: Settings, where: str) -> Iterator[Finding]:
    product = settings.pro_product_id
    if product is not None and not any(product in plan.product_ids for plan in settings.catalog.plans):
        yield Finding(
            name="catalog",
            status="warn",
            detail=f"POLAR_PRO_PRODUCT_ID is not used: {where} has no plan pro",
            fix="Add [plans.pro] there, or name the product in the product_ids of another plan.",
        )
        return
    sold = [plan for plan in settings.catalog.plans if plan.product_ids]
    if not sold and not any(pack.product_ids for pack in settings.catalog.packs):
        yield Finding(
            name="catalog",
            status="warn",
            detail="no plan or pack is sold as a product",
            fix="Set POLAR_PRO_PRODUCT_ID, or run: polarcredits init",
        )


def check_database(open_ledger: Callable[[], Ledger], now: datetime) -> Iterator[Finding]:
    """Check that the database opens, is migrated, and holds what it must."""
    try:
        with open_ledger() as ledger:
            health = examine(ledger)
    except PolarCreditsError as error:
        yield Finding(name="database", status="fail", detail=error.message, fix=_database_fix(error))
        return
    yield Finding(name="database", status="ok", detail=f"reachable and migrated, {health.users} users")
    if health.forgetful:
        yield Finding(
            name="durability",
            status="warn",
            detail=f"{', '.join(health.forgetful)} off: a crash can lose what was acknowledged",
            fix="Set them to on in postgresql.conf, or for the database: ALTER DATABASE … SET …",
        )
    if health.problems:
        first = health.problems[0]
        detail = f"{len(health.problems)} laws broken, first: {first.user}: {first.detail}"
        yield Finding(name="ledger", status="fail", detail=detail, fix="polarcredits ledger verify")
    else:
        yield Finding(name="ledger", status="ok", detail="the laws hold for the accounts last written")
    due = health.work.oldest_due
    late = now - due if due else timedelta(0)
    if late > _CRON_LATE:
        detail = f"something has been due for {_told(late)}: cron does not seem to run it"
        yield Finding(name="refill", status="warn", detail=detail, fix="0 * * * * polarcredits refill")
    else:
        yield Finding(name="refill", status="ok", detail="nothing is overdue")
    if health.work.failed_events:
        yield Finding(
            name="events",
            status="fail",
            detail=f"{health.work.failed_events} could not be applied, "
            f"{health.work.dead_events} of them given up",
            fix="polarcredits webhooks list --status failed, then: polarcredits webhooks retry --all",
        )
    else:
        yield Finding(name="events", status="ok", detail="none has failed")
    for each in health.disagreements:
        yield Finding(
            name="identity",
            status="warn",
            detail=f"{each.kind} {each.id} is {each.metadata_user}'s by its metadata, its customer is "
            f"{each.customer_user}; the metadata counts",
            fix="Let each user buy with a customer of their own.",
        )


def _database_fix(error: PolarCreditsError) -> str:
    """Return what mends a database that cannot be used; the message says it too."""
    if isinstance(error, ConfigError):
        return "Set POLAR_ENVIRONMENT to the one it holds, or POLARCREDITS_DATABASE_URL to another database."
    if isinstance(error, DatabaseBusy):
        return "Let the other writer finish, then run doctor again."
    if "db upgrade" in error.message:
        return "polarcredits db upgrade"
    return "Check POLARCREDITS_DATABASE_URL, and that the database runs and may be used."


def check_polar(
    settings: Settings, polar: PolarApi, unknown: Sequence[str], now: Callable[[], datetime]
) -> Iterator[Finding]:
    """Check the token, the products and the endpoint; stops where Polar cannot be asked."""
    try:
        page = polar.first_products()
    except (PolarUnavailable, PolarRefused) as error:
        fix = "Make a token in Polar's settings, for this environment."
        yield Finding(name="token", status="fail", detail=error.message, fix=fix)
        return
    yield Finding(name="token", status="ok", detail=f"Polar's {settings.environment} takes it")
    yield _clock(page, now())
    checks: tuple[tuple[str, Callable[[], list[Finding]]], ...] = (
        ("scopes", lambda: [_scopes(polar)]),
        ("products", lambda: compare(settings.catalog, polar.products(), unknown, settings.environment)),
        ("endpoint", lambda: list(_endpoint(settings, polar, now()))),
    )
    for name, check in checks:
        try:
            yield from check()
        except (PolarUnavailable, PolarRefused) as error:
            yield Finding(
                name=name, status="fail", detail=error.message, fix="Run doctor again, or see the token."
            )


def _clock(page: Page, now: datetime) -> Finding:
    if page.told_at is None:
        return Finding(
            name="clock",
            status="warn",
            detail="Polar's answers have no Date header: sync cannot say how old they are",
            fix="Check POLAR_BASE_URL, and what stands between here and Polar.",
        )
    skew = abs(now - page.told_at - timedelta(seconds=1))
    status = _skew_status(skew)
    return Finding(
        name="clock",
        status=status,
        detail=f"differs from Polar's by about {skew.total_seconds():.0f} s",
        fix=None if status == "ok" else "Set the clock (NTP): deliveries are refused from 5 minutes on.",
    )


def _skew_status(skew: timedelta) -> Status:
    return "fail" if skew > _SKEW_FAIL else "warn" if skew > _SKEW_WARN else "ok"


def _scopes(polar: PolarApi) -> Finding:
    lacking = polar.lacking_scopes()
    if lacking:
        return Finding(
            name="scopes",
            status="fail",
            detail=f"the token lacks {', '.join(lacking)}",
            fix="Make a token with these scopes in Polar's settings.",
        )
    return Finding(name="scopes", status="ok", detail="the token may do what is needed")


def _endpoint(settings: Settings, polar: PolarApi, now: datetime) -> Iterator[Finding]:
    endpoints = polar.endpoints()
    secrets = {secret.reveal() for secret in settings.webhook_secrets}
    mine = _ours(settings.public_url, secrets, endpoints)
    if mine is None:
        yield _no_endpoint(settings.public_url, endpoints)
        return
    register = f"polarcredits webhooks register {mine.url}"
    if is_right(mine):
        yield Finding(name="endpoint", status="ok", detail=f"{mine.url}, {len(mine.events)} events")
    else:
        yield Finding(
            name="endpoint",
            status="fail",
            detail=f"{mine.url}: {'; '.join(_faults(mine))}",
            fix=f"{register}, then: polarcredits sync --since 30d",
        )
    if mine.secret is None:
        yield Finding(
            name="secret",
            status="warn",
            detail=f"cannot be compared: Polar does not tell that of {mine.url}",
            fix="Compare POLAR_WEBHOOK_SECRET with the endpoint's in Polar's settings.",
        )
    elif mine.secret in secrets:
        yield Finding(name="secret", status="ok", detail="is the endpoint's")
    else:
        detail = f"POLAR_WEBHOOK_SECRET is not that of {mine.url}"
        yield Finding(name="secret", status="fail", detail=detail, fix=register)
    yield from _deliveries(polar, mine, now)


def _ours(address: str | None, secrets: Collection[str], endpoints: Sequence[Endpoint]) -> Endpoint | None:
    """Return the endpoint at our public *address*, else one with a secret of ours."""
    here = [each for each in endpoints if address and each.url.startswith(f"{address}/")]
    known = [each for each in endpoints if each.secret in secrets]
    candidates = here or known
    return min(candidates, key=lambda each: (each.secret not in secrets, not is_right(each)), default=None)


def _no_endpoint(address: str | None, endpoints: Sequence[Endpoint]) -> Finding:
    """Tell that none is known to be ours; a single one may be, if nothing says where we are."""
    if address is None and len(endpoints) == 1:
        only = endpoints[0]
        return Finding(
            name="secret",
            status="fail",
            detail=f"POLAR_WEBHOOK_SECRET is not that of {only.url}, the one endpoint that Polar has",
            fix=f"If it is yours: polarcredits webhooks register {only.url}. If not: {_REGISTER}",
        )
    place = f" at {address}" if address else ""
    fix = f"polarcredits webhooks register {address}/webhooks/polar" if address else _REGISTER
    detail = f"Polar has no webhook endpoint{place} for us, and none with our secret"
    return Finding(name="endpoint", status="fail", detail=detail, fix=fix)


def _faults(endpoint: Endpoint) -> Iterator[str]:
    if not endpoint.enabled:
        yield "it is disabled"
    missing = sorted(set(EVENTS) - set(endpoint.events))
    if missing:
        yield f"it does not send {', '.join(missing)}"
    if endpoint.api_version != API_VERSION:
        yield f"its version is {endpoint.api_version}"
    if endpoint.format != "raw":
        yield f"its format is {endpoint.format}"


def _deliveries(polar: PolarApi, endpoint: Endpoint, now: datetime) -> Iterator[Finding]:
    """Look at the last hundred attempts: what failed for good, and whether that was the signature."""
    ended: dict[str, tuple[bool, int | None]] = {}
    for attempt in polar.last_deliveries(now - _LOG, endpoint=endpoint.id):
        succeeded, code = ended.get(attempt.event_id, (False, attempt.http_code))
        ended[attempt.event_id] = (succeeded or attempt.succeeded, code)
    failed = [code for succeeded, code in ended.values() if not succeeded]
    if not failed:
        yield Finding(name="deliveries", status="ok", detail=f"the last {len(ended)} events arrived")
        return
    refused = " with 401: the secret is wrong" if 401 in failed else ""
    yield Finding(
        name="deliveries",
        status="fail" if len(failed) == len(ended) else "warn",
        detail=f"{len(failed)} of the last {len(ended)} events did not arrive{refused}",
        fix="polarcredits webhooks pull --since 2d",
    )


def _told(time: timedelta) -> str:
    hours = int(time.total_seconds() // 3600)
    return f"{hours} hours" if hours < 72 else f"{hours // 24} days"
