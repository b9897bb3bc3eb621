"""Webhook signatures: raw body, headers and secrets become a Delivery, or a refusal (docs/rules.md §8.1)."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from standardwebhooks import Webhook

from polarcredits.errors import InvalidInput
from polarcredits.periods import parse_time

TOLERANCE = timedelta(minutes=5)
_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
_STANDARD_SECRET = re.compile(r"whsec_[A-Za-z0-9+/]{43}=")
_ORGANIZATION_SECRET = re.compile(r"[0-9a-fA-F]{32}")


class SignatureRefused(InvalidInput):
    """A delivery that is not to be believed; `reason` says why."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message, reason=reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A verified delivery."""

    id: str
    type: str | None
    timestamp: datetime | None
    raw: bytes
    payload: dict[str, Any]
    sent_at: datetime


def verify(
    raw: bytes,
    headers: Mapping[str, str],
    secrets: Sequence[str],
    *,
    now: datetime | None,
    allow_triggered: bool = False,
) -> Delivery:
    """Return what *raw* says if one of *secrets* signed it; with *now*, within five minutes.

    Raises SignatureRefused, which never shows a secret.
    """
    given = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in _HEADERS if not given.get(name)]
    if missing:
        raise SignatureRefused("missing_header", f"Header {', '.join(missing)} is missing.")
    id, stamp = given["webhook-id"], given["webhook-timestamp"]
    sent_at = _sent_at(id, stamp)
    signatures = _signatures(given["webhook-signature"])
    signer = next((s for s in secrets if _signed(raw, id, sent_at, signatures, keys(s))), None)
    payload = _object(raw)
    organization = None
    if signer is None and payload is not None:
        guesses = _organizations(payload)
        organization = next(
            (g for g in guesses if _signed(raw, id, sent_at, signatures, (g.encode(),))), None
        )
    if signer is None and organization is None:
        raise SignatureRefused(
            "mismatch", "No configured POLAR_WEBHOOK_SECRET made this signature."
        )
    if now is not None and abs(now - sent_at) > TOLERANCE:
        raise SignatureRefused("stale", "The signature is more than five minutes from now.")
    if payload is None:
        raise SignatureRefused("not_json", "The body is not a JSON object.")
    listens = organization is not None or (
        signer is not None
        and (_ORGANIZATION_SECRET.fullmatch(signer) or signer in _organizations(payload))
    )
    if listens and not allow_triggered:
        raise SignatureRefused(
            "organization_secret", "Signed with the organization id, which is no secret."
        )
    if given.get("x-polar-triggered", "false").strip().lower() != "false" and not allow_triggered:
        raise SignatureRefused("triggered", "A made-up delivery (x-polar-triggered).")
    kind, at = payload.get("type"), payload.get("timestamp")
    return Delivery(
        id=id,
        type=kind if isinstance(kind, str) and kind.strip() else None,
        timestamp=read_time(at),
        raw=raw,
        payload=payload,
        sent_at=sent_at,
    )


def sign(raw: bytes, *, id: str, secret: str, at: datetime) -> dict[str, str]:
    """Return the headers of a delivery, signed as Polar would with a secret of this form."""
    key = keys(secret)[-1] if _STANDARD_SECRET.fullmatch(secret) else secret.encode()
    return {
        "content-type": "application/json",
        "webhook-id": id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(key).sign(id, at, raw.decode()),
    }


def keys(secret: str) -> tuple[bytes, ...]:
    """Return the keys that a secret may stand for: its own bytes, and what it encodes."""
    own = secret.encode()
    try:
        decoded = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        return (own,)
    return (own, decoded) if decoded else (own,)


def read_time(value: object) -> datetime | None:
    """Return the time that a payload's field holds, None where it holds none."""
    try:
        return parse_time(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _sent_at(id: str, stamp: str) -> datetime:
    if not id.isprintable() or len(id) > 255 or id != id.strip():
        raise SignatureRefused("malformed", "Header webhook-id is malformed.")
    if not re.fullmatch(r"[0-9]{1,11}", stamp):
        raise SignatureRefused("malformed", "Header webhook-timestamp is malformed.")
    return datetime.fromtimestamp(int(stamp), UTC)


def _signatures(header: str) -> list[str]:
    found = [part for part in header.split(" ") if part.startswith("v1,")]
    if not found:
        raise SignatureRefused("malformed", "Header webhook-signature is malformed.")
    return found


def _signed(
    raw: bytes, id: str, at: datetime, signatures: Iterable[str], candidates: Iterable[bytes]
) -> bool:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return False
    expected = [Webhook(key).sign(id, at, text) for key in candidates if key]
    return any(
        [hmac.compare_digest(e.encode(), s.encode()) for e in expected for s in signatures]
    )


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        loaded = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return loaded if isinstance(loaded, dict) else None


def _organizations(payload: Mapping[str, Any]) -> set[str]:
    """Return the dash-less organization ids that the body mentions."""
    found: set[str] = set()
    todo: list[Any] = [payload]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo += value.values()
            id = value.get("organization_id")
            if isinstance(id, str) and id:
                found.add(id.replace("-", ""))
            whole = value.get("organization")
            if isinstance(whole, dict) and isinstance(whole.get("id"), str):
                found.add(whole["id"].replace("-", ""))
        elif isinstance(value, list):
            todo += value
    kind = payload.get("type")
    data = payload.get("data")
    if isinstance(kind, str) and kind.startswith("organization.") and isinstance(data, dict):
        own = data.get("id")
        found |= {own.replace("-", "")} if isinstance(own, str) else set()
    return {each for each in found if _ORGANIZATION_SECRET.fullmatch(each)}
