"""What every command needs, opened on first use: settings, ledger, inbox."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polarcredits.errors import InvalidInput
from polarcredits.periods import parse_duration, parse_time

if TYPE_CHECKING:
    from polarcredits.ledger.ledger import Ledger
    from polarcredits.polar_api import PolarApi
    from polarcredits.settings import Settings
    from polarcredits.webhooks.inbox import Inbox


@dataclass(slots=True)
class Options:
    """The global options of one run."""

    config: Path | None = None
    database: str | None = None
    actor: str | None = None
    verbose: bool = False
    json: bool = False


options = Options()


def settings(*, may_lack_file: bool = False) -> Settings:
    """Read the settings; with *may_lack_file*, whether or not the file that is named is there."""
    from polarcredits.settings import load_settings

    return load_settings(config=options.config, database=options.database, may_lack_file=may_lack_file)


@contextmanager
def ledger(*, rehearse: bool = False) -> Iterator[Ledger]:
    """Open the ledger; with *rehearse*, all that is done is undone at the end (`--dry-run`)."""
    from polarcredits.ledger.opening import open_configured

    with open_configured(settings(), actor=actor()) as opened:
        if not rehearse:
            yield opened
            return
        with opened.rehearse() as stage:
            yield stage


def inbox(opened: Ledger) -> Inbox:
    """Open the inbox of a ledger."""
    from polarcredits.webhooks.inbox import Inbox

    known = settings()
    secrets = [secret.reveal() for secret in known.webhook_secrets]
    return Inbox(opened, environment=known.environment, secrets=secrets)


@contextmanager
def polar() -> Iterator[PolarApi]:
    """Open the gateway to Polar."""
    from polarcredits.polar_api import open_polar

    with open_polar(settings()) as opened:
        yield opened


def actor() -> str:
    """Return who is written on entries: --actor, else the system's user."""
    if options.actor:
        return f"cli:{options.actor}"
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return "cli:unknown"


Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="At most so many.")]


def time_of(text: str | None, option: str) -> datetime | None:
    """Return the time that an option names."""
    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError as error:
        raise InvalidInput(f"{option}: {error}.") from error


def duration_of(text: str | None, option: str) -> timedelta | None:
    """Return the duration that an option names."""
    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise InvalidInput(f"{option}: {error}.") from error


def since_of(text: str | None, now: datetime) -> datetime | None:
    """Return the time that `--since` names: itself, or so long ago (`30d`)."""
    if text is None:
        return None
    try:
        return now - parse_duration(text)
    except ValueError:
        return time_of(text, "--since")


def metadata_of(pairs: list[str] | None, option: str = "--meta") -> dict[str, str]:
    """Return `K=V` options as a mapping."""
    found: dict[str, str] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InvalidInput(f"{option} {pair!r} is not K=V.")
        found[key] = value
    return found


def amount_of(text: str) -> int:
    """Return the whole number that an argument names."""
    if text.isascii() and text.isdecimal() and len(text) < 25:
        return int(text)
    raise InvalidInput(f"{text[:40]!r} is not a whole number of credits above 0.")
