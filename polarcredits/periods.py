"""Time: parsing, and how a billing period is cut into allowance periods (docs/rules.md §4)."""

from __future__ import annotations

import calendar
import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Literal

Interval = Literal["day", "week", "month", "year", "lifetime"]

_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST = timedelta(days=36_500)
_MICROSECOND = timedelta(microseconds=1)
FOREVER = 2**62
"""A time in microseconds that never comes."""


def parse_time(text: str) -> datetime:
    """Return the aware UTC time that *text* (RFC 3339, with an offset) names, or raise ValueError."""
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is UTC:
            return time
        if time.tzinfo is not None:
            return time.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{text!r} is no time such as 2026-11-23T05:00:00Z")


def format_time(time: datetime) -> str:
    """Return *time* as RFC 3339 in UTC with `Z`; a fraction only where there is one."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def parse_duration(text: str) -> timedelta:
    """Return the duration that *text* (`<n>` and one of s m h d w) names, or raise ValueError."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no duration such as 15m, 1h or 30d")
    try:
        duration = timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        duration = timedelta.max
    if duration > _LONGEST:
        raise ValueError(f"{text!r} is too long a duration; the longest is {_LONGEST.days}d")
    return duration


def to_micros(time: datetime) -> int:
    """Return *time* (aware) as whole microseconds since 1970."""
    if time.tzinfo is None:
        raise ValueError("a time without a zone is refused")
    return (time - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """Return the UTC time that is *micros* microseconds after 1970."""
    return _EPOCH + micros * _MICROSECOND


def anchor_day(start: datetime, end: datetime) -> int:
    """Return the day of the month that periods from *start* keep.

    It is the start's day, or the end's where that is larger and the start is its month's last day
    (a period from 28 February to 31 March belongs to a subscription begun on a 31st).
    """
    if end.day > start.day and start.day == calendar.monthrange(start.year, start.month)[1]:
        return end.day
    return start.day


def boundary(start: datetime, interval: Interval, index: int, *, anchor: int) -> datetime:
    """Return where allowance period *index* begins, counted from *start* (months keep *anchor*)."""
    if interval == "day":
        return start + timedelta(days=index)
    if interval == "week":
        return start + timedelta(weeks=index)
    if index == 0:
        return start
    months = start.month - 1 + index * (12 if interval == "year" else 1)
    year, month = start.year + months // 12, months % 12 + 1
    day = min(anchor, calendar.monthrange(year, month)[1])
    return start.replace(year=year, month=month, day=day)


def cut(start: datetime, end: datetime, interval: Interval) -> list[tuple[datetime, datetime]]:
    """Cut the billing period [start, end) into allowance periods, the last one taking any rest."""
    if interval == "lifetime":
        return [(start, end)]
    anchor = anchor_day(start, end)
    bounds = [start]
    while (following := boundary(start, interval, len(bounds), anchor=anchor)) <= end:
        bounds.append(following)
    if len(bounds) == 1:
        return [(start, end)]
    bounds[-1] = end
    return list(pairwise(bounds))
