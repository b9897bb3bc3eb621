"""Files of deliveries and payloads, read element by element so that one bad one spoils no other."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from polarcredits.webhooks.canonical import canonical_json, load_json


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDelivery:
    """A delivery as it was received: its signature can be verified."""

    where: str
    headers: dict[str, str]
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BarePayload:
    """A payload without headers: it carries no proof of who sent it."""

    where: str
    id: str
    """`sha256:` and the digest of `raw`, so that taking it twice is once."""
    payload: dict[str, Any]
    raw: bytes
    """Its canonical JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """An element that is neither."""

    where: str
    error: str


Element = StoredDelivery | BarePayload | Broken

_NEITHER = "it is neither a stored delivery with headers and body nor a payload with type, timestamp and data"


def read_elements(data: bytes, where: str) -> list[Element]:
    """Read a JSON object, a JSON array or JSON Lines; *where* names the source in the answers."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        return []
    try:
        whole = load_json(data, finite=False)
    except ValueError as error:
        return _read_lines(data, where, str(error))
    if isinstance(whole, list):
        return [_element(item, f"{where}[{index}]") for index, item in enumerate(whole)]
    first = data[: len(data) - len(data.lstrip())].count(b"\n") + 1
    return [_element(whole, f"{where}:{first}")]


def _read_lines(data: bytes, where: str, error: str) -> list[Element]:
    lines = [(n, line.strip()) for n, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    elements = [_line(line, f"{where}:{number}") for number, line in lines]
    is_one_document = not all(line.startswith(b"{") for _, line in lines)
    if is_one_document and all(isinstance(element, Broken) for element in elements):
        return [Broken(where=where, error=f"it is no JSON: {error}")]
    return elements


def _line(line: bytes, where: str) -> Element:
    try:
        return _element(load_json(line, finite=False), where)
    except ValueError as error:
        return Broken(where=where, error=f"it is no JSON: {error}")


def _element(value: Any, where: str) -> Element:
    if not isinstance(value, dict):
        return Broken(where=where, error=_NEITHER)
    try:
        if "headers" in value and ("body" in value or "body_base64" in value):
            return StoredDelivery(where=where, headers=_headers(value["headers"]), raw=_body(value))
        if not {"type", "timestamp", "data"} <= value.keys():
            return Broken(where=where, error=_NEITHER)
        if isinstance(value["type"], str) and not value["type"].isprintable():
            return Broken(where=where, error="its type has characters that cannot be printed")
        raw = canonical_json(value).encode()
    except ValueError as error:
        return Broken(where=where, error=str(error))
    digest = hashlib.sha256(raw).hexdigest()
    return BarePayload(where=where, id=f"sha256:{digest}", payload=value, raw=raw)


def _body(element: dict[str, Any]) -> bytes:
    encoded = element.get("body_base64")
    if encoded is not None:
        if not isinstance(encoded, str):
            raise ValueError("body_base64 is no text")
        try:
            return base64.b64decode("".join(encoded.split()), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("body_base64 is no base64") from None
    body = element.get("body")
    if not isinstance(body, str):
        raise ValueError("body is no text: it must be the raw body as it was received")
    try:
        return body.encode()
    except UnicodeEncodeError:
        raise ValueError("body holds half a character (an unpaired surrogate)") from None


def _headers(value: object) -> dict[str, str]:
    """Return the headers as a mapping; of two with one name the first counts."""
    pairs: Iterable[object]
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = value
    else:
        raise ValueError("headers are neither an object nor a list of pairs")
    headers: dict[str, str] = {}
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError("headers are neither an object nor a list of pairs")
        name, text = pair
        if isinstance(text, int) and not isinstance(text, bool):
            text = str(text)
        if isinstance(name, str) and isinstance(text, str):
            headers.setdefault(name.lower(), text)
    return headers
