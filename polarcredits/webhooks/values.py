"""Single values of a payload: one that is of the wrong type or unusable counts as absent."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from polarcredits.periods import parse_time

_LARGEST = 2**53
_LONGEST_ID = 255
_LONGEST_TEXT = 1000
_YEARS = range(1971, 9000)


def usable_id(value: object) -> str | None:
    """Return *value* if it can be an id: 1 to 255 characters, no outer blanks, no controls."""
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_ID or value != value.strip():
        return None
    if value.isprintable():
        return value
    return None if any(_is_control(character) for character in value) else value


def usable_user_id(value: object) -> str | None:
    """Return *value* if it can be a user's id, which our own `polar:…` accounts' cannot (§7.1)."""
    text = usable_id(value)
    return None if text is None or text.startswith("polar:") else text


def usable_time(value: object) -> datetime | None:
    """Return the time that *value* names; None for one without a zone or out of all reason."""
    if not isinstance(value, str):
        return None
    try:
        time = parse_time(value)
    except ValueError:
        return None
    return time if time.year in _YEARS else None


def as_object(value: object) -> Mapping[str, Any]:
    """Return *value* if it is an object, else an empty one."""
    return value if isinstance(value, (dict, Mapping)) else {}


def as_objects(value: object) -> list[Mapping[str, Any]]:
    """Return the objects in the list *value*."""
    return [item for item in value if isinstance(item, (dict, Mapping))] if isinstance(value, list) else []


def as_cents(value: object) -> int | None:
    """Return *value* if it is a whole number that every program can hold."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _LARGEST:
        return None
    return value


def as_count(value: object) -> int | None:
    """Return *value* if it is a whole number above 0."""
    number = as_cents(value)
    return number if number is not None and number > 0 else None


def as_word(value: object) -> str:
    """Return *value* if it is a short text such as a status, else an empty one."""
    return usable_id(value) or ""


def as_text(value: object) -> str | None:
    """Return *value* on one line if it is a name or an address that can be stored and shown."""
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        return None
    if not value.isprintable():
        value = "".join(" " if _is_control(c) else c for c in value)
    return value.strip() or None


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs")
