"""What callers may ask for: amounts, keys and metadata checked, and requests compared (§5.4)."""

from __future__ import annotations

import hashlib
import json
import re
import time as clock
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, overload

from sqlalchemy import Connection, Row, select

from polarcredits.errors import AlreadyReversed, InvalidInput, KeyReused
from polarcredits.ledger import tables as t
from polarcredits.ledger.values import transaction_id

MOST_CREDITS = 2**53
MOST_BALANCE = 2**62
LONGEST_TEXT = 1000
MOST_SHOWN = 60
LONGEST_KEY = 2600
"""In bytes: an entry of an index of PostgreSQL is at most 2,704."""
_UNKEPT = re.compile("[\x00\ud800-\udfff]")
_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


def check_amount(amount: object, what: str = "The amount") -> int:
    """Return *amount* if it is a whole number of credits above 0, else raise InvalidInput."""
    if type(amount) is not int or not 0 < amount <= MOST_CREDITS:
        raise InvalidInput(f"{what} must be a whole number from 1 to 2^53, not {shown(amount)}.")
    return amount


def shown(value: object) -> str:
    """Return what was given, short enough for a message."""
    try:
        text = repr(value)
    except ValueError:
        return "one of thousands of digits"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


@overload
def check_text(value: str, what: str) -> str: ...
@overload
def check_text(value: str | None, what: str) -> str | None: ...
def check_text(value: str | None, what: str) -> str | None:
    """Return *value* if it can be stored and shown, else raise InvalidInput."""
    if value is None:
        return None
    printable = isinstance(value, str) and len(value) <= LONGEST_TEXT and value.isprintable()
    if not printable or not value.strip():
        raise InvalidInput(f"{what} must be 1 to {LONGEST_TEXT} printable characters.")
    return value


def check_key(key: str | None) -> str | None:
    """Return an idempotency key if it can be stored and found again, else raise InvalidInput."""
    if key is None:
        return None
    check_text(key, "The idempotency key")
    if len(key.encode()) > LONGEST_KEY:
        raise InvalidInput(f"The idempotency key must be at most {LONGEST_KEY} bytes of UTF-8.")
    return key


def check_metadata(metadata: Mapping[str, str] | None) -> str | None:
    """Return metadata as it is stored."""
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping):
        raise InvalidInput(f"Metadata must be texts by name, not {shown(metadata)}.")
    if not metadata:
        return None
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str) or _UNKEPT.search(key + value):
            raise InvalidInput("Metadata must be texts by name, without NUL and lone surrogates.")
    stored = json.dumps(dict(metadata), sort_keys=True)
    if len(stored) > 10_000:
        raise InvalidInput("Metadata is longer than 10,000 characters.")
    return stored


def wall_clock() -> int:
    """Return now, in microseconds."""
    return clock.time_ns() // 1000


@overload
def check_time(time: datetime, what: str) -> datetime: ...
@overload
def check_time(time: datetime | None, what: str) -> datetime | None: ...
def check_time(time: datetime | None, what: str) -> datetime | None:
    """Return *time* in UTC; a naive one is refused."""
    if time is None:
        return None
    if not isinstance(time, datetime):
        raise InvalidInput(f"{what} must be a datetime, not {shown(time)}.")
    if time.tzinfo is None:
        raise InvalidInput(f"{what} needs a time zone.")
    if not _FIRST <= time <= _LAST:
        raise InvalidInput(f"{what} must lie between the years 1970 and 9000.")
    return time.astimezone(UTC)


def check_expiry(at: datetime | None, within: timedelta | None, now: datetime) -> datetime | None:
    """Return when a grant ends that lasts until *at* or for *within*; None if for good."""
    if at is not None and within is not None:
        raise InvalidInput("Give the expiry as a time or as a duration, not as both.")
    check_duration(within, "How long the grant lasts")
    try:
        return check_time(at if within is None else now + within, "The expiry")
    except OverflowError:
        raise InvalidInput("The expiry lies too far ahead.") from None


@overload
def check_duration(duration: timedelta, what: str) -> timedelta: ...
@overload
def check_duration(duration: timedelta | None, what: str) -> timedelta | None: ...
def check_duration(duration: timedelta | None, what: str) -> timedelta | None:
    """Return *duration* if it is one, else raise InvalidInput."""
    if duration is not None and not isinstance(duration, timedelta):
        raise InvalidInput(f"{what} must be a timedelta, not {shown(duration)}.")
    return duration


def digest(**request: Any) -> str:
    """Return what two requests with one key must have in common."""
    body = json.dumps(request, sort_keys=True, default=str)
    return hashlib.sha256(body.encode()).hexdigest()


def find_key(connection: Connection, accounts: tuple[int, ...], key: str, request: str) -> Row[Any] | None:
    """Return the entry or hold that used *key*; KeyReused if it asked for something else."""
    tx, h = t.transactions.c, t.holds.c
    for account in dict.fromkeys(accounts):
        for table, owner in ((t.transactions, tx.account_id), (t.holds, h.key_account)):
            query = select(table).where(owner == account, table.c.idempotency_key == key)
            row = connection.execute(query).first()
            if row is None:
                continue
            if row.request != request:
                raise KeyReused(key)
            return row
    return None


def refuse_if_reversed(connection: Connection, account: int, sequence: int) -> None:
    """Raise AlreadyReversed if a deduction was given back."""
    tx = t.transactions.c
    query = select(tx.sequence).where(tx.reverses_account == account, tx.reverses_sequence == sequence)
    if connection.execute(query).first() is not None:
        raise AlreadyReversed(transaction_id(account, sequence))
