"""Reading what `webhooks ingest` is given: JSON, a JSON array, or JSON Lines."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polarcredits.webhooks.payloads import canonical_json


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDelivery:
    """A delivery as it came: its signature is still to be verified."""

    where: str
    headers: dict[str, str]
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BarePayload:
    """A payload without proof, known by the digest of its canonical JSON."""

    where: str
    id: str
    payload: dict[str, Any]
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """An element that cannot be read."""

    where: str
    error: str


Element = StoredDelivery | BarePayload | Broken


def read_elements(data: bytes, where: str) -> list[Element]:
    """Return every element of a file in its order; what cannot be read is Broken, never raised."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return [Broken(where=where, error=f"not UTF-8 text (byte {error.start})")]
    try:
        whole = _loads(text)
    except ValueError as error:
        lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
        if len(lines) < 2 or not _any_line_reads(lines):
            return [Broken(where=where, error=f"not JSON: {error}")]
        return [_line(line, f"{where}:{number}") for number, line in lines]
    if isinstance(whole, list):
        return [_element(value, f"{where}[{index}]") for index, value in enumerate(whole)]
    return [_element(whole, where)]


def _any_line_reads(lines: list[tuple[int, str]]) -> bool:
    for _, line in lines:
        try:
            if isinstance(_loads(line), dict):
                return True
        except ValueError:
            continue
    return False


def _line(line: str, where: str) -> Element:
    try:
        return _element(_loads(line), where)
    except ValueError as error:
        return Broken(where=where, error=f"not JSON: {error}")


def _loads(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _element(value: Any, where: str) -> Element:
    if not isinstance(value, dict):
        return Broken(where=where, error="neither a stored delivery nor a payload")
    if "headers" in value and ("body" in value or "body_base64" in value):
        return _stored(value, where)
    if "type" in value and "data" in value:
        try:
            raw = canonical_json(value).encode()
        except RecursionError:
            return Broken(where=where, error="nested too deeply")
        id = "sha256:" + hashlib.sha256(raw).hexdigest()
        return BarePayload(where=where, id=id, payload=value, raw=raw)
    return Broken(
        where=where,
        error='neither a stored delivery {"headers", "body"} nor a payload {"type", "timestamp", "data"}',
    )


def _stored(value: Mapping[str, Any], where: str) -> Element:
    headers = value["headers"]
    pairs = list(headers.items()) if isinstance(headers, dict) else headers
    if not isinstance(pairs, list) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(x, str) for x in pair)
        for pair in pairs
    ):
        return Broken(where=where, error="headers are neither an object nor a list of pairs")
    body = value.get("body")
    try:
        if value.get("body_base64") is not None:
            raw = base64.b64decode(value["body_base64"], validate=True)
        elif isinstance(body, str):
            raw = body.encode()
        else:
            return Broken(where=where, error="the body is not a text")
    except (binascii.Error, ValueError, TypeError) as error:
        return Broken(where=where, error=f"the body cannot be decoded: {error}")
    return StoredDelivery(where=where, headers={name: text for name, text in pairs}, raw=raw)
