"""JSON read strictly and written one way, so that equal objects have equal text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

DEEPEST = 100
"""How many levels of lists and objects a payload may have; Polar's have about eight."""
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical_json(value: object) -> str:
    """Return *value* as ASCII JSON with sorted keys and no spaces; ValueError if it has none."""
    plain = dict(value) if isinstance(value, Mapping) and not isinstance(value, dict) else value
    try:
        return _ENCODER.encode(plain)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except TypeError as error:
        raise ValueError(f"no JSON value: {error}") from None


def load_json(raw: bytes, *, finite: bool = True) -> Any:
    """Parse UTF-8 JSON (a byte order mark is ignored), or raise ValueError saying what is wrong.

    With *finite*, NaN and infinite numbers are refused; otherwise `canonical_json` refuses them.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite) if finite else json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if text.count("[") + text.count("{") > DEEPEST:
        _refuse_depth(value)
    return value


def _refuse_depth(value: object) -> None:
    """Raise ValueError for more levels than whoever reads it again later can surely have on its stack."""
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _within(outer) if isinstance(inner, dict | list)]
        if not level:
            return
    raise ValueError("nested too deeply")


def _within(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number
