"""`polarcredits doctor` and `plans diff`: what is wrong, and what mends it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from polarcredits.cli import context
from polarcredits.cli.output import counted, emit, say
from polarcredits.errors import ConfigError, PolarCreditsError

if TYPE_CHECKING:
    from polarcredits.findings import Finding
    from polarcredits.ledger.ledger import Ledger


def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask Polar.")] = False,
) -> None:
    """Check everything that keeps credits right. Example: polarcredits doctor"""
    from polarcredits import doctor as checks
    from polarcredits.ledger.health import unknown_products
    from polarcredits.ledger.opening import open_configured

    try:
        known = context.settings()
    except ConfigError as error:
        _tell([_finding("configuration", error)], key="checks")
        return

    def opened() -> Ledger:
        return open_configured(known, actor=context.actor())

    findings = [*checks.check_settings(known), *checks.check_database(opened, datetime.now(UTC))]
    if known.access_token is not None and not offline:
        try:
            with opened() as ledger:
                unknown = unknown_products(ledger)
        except PolarCreditsError:
            unknown = ()
        try:
            with context.polar() as polar:
                findings += checks.check_polar(known, polar, unknown, lambda: datetime.now(UTC))
        except ConfigError as error:
            findings.append(_finding("token", error))
    _tell(findings, key="checks")


def plans_diff() -> None:
    """Compare plans and packs with Polar's products. Example: polarcredits plans diff"""
    from polarcredits.ledger.health import unknown_products
    from polarcredits.plans_diff import compare

    known = context.settings()
    with context.polar() as polar, context.ledger() as ledger:
        findings = compare(known.catalog, polar.products(), unknown_products(ledger), known.environment)
    _tell(findings, key="findings")


def _finding(name: str, error: PolarCreditsError) -> Finding:
    from polarcredits.findings import Finding

    return Finding(name=name, status="fail", detail=error.message, fix="Correct the setting.")


def _tell(findings: Sequence[Finding], *, key: str) -> None:
    from polarcredits.findings import passed

    ok = passed(findings)
    listed = [
        {"name": each.name, "status": each.status, "detail": each.detail, "fix": each.fix}
        for each in findings
    ]

    def people() -> None:
        for each in findings:
            for line in textwrap.wrap(
                f"{each.status:<4}  {each.name}: {each.detail}", 80, subsequent_indent=" " * 6
            ):
                say(line)
            if each.fix is not None:
                say(f"      → {each.fix}")
        bad = sum(each.status == "fail" for each in findings)
        warned = sum(each.status == "warn" for each in findings)
        say(f"{counted(len(findings), 'check')}, {bad} failed, {counted(warned, 'warning')}.")

    emit({"ok": ok, key: listed}, people)
    if not ok:
        raise typer.Exit(10)
