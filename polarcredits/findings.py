"""Findings: what a check saw, how bad that is, and what mends it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check: `fix` says what to do, and is None where nothing is wrong."""

    name: str
    status: Status
    detail: str
    fix: str | None = None


def passed(findings: Iterable[Finding]) -> bool:
    """Say whether nothing failed; warnings pass."""
    return all(finding.status != "fail" for finding in findings)
