"""Signatures of deliveries: Standard Webhooks, in both key forms (docs/rules.md §8.1)."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from standardwebhooks.webhooks import hmac_data

from polarcredits.errors import InvalidInput
from polarcredits.webhooks.canonical import load_json
from polarcredits.webhooks.values import usable_id, usable_time

TOLERANCE = timedelta(minutes=5)
"""How far a live delivery's `webhook-timestamp` may lie from now, either way."""

Reason = Literal[
    "missing_header",
    "malformed",
    "mismatch",
    "stale",
    "not_json",
    "triggered",
    "organization_secret",
]

_SECONDS = re.compile(r"[0-9]{1,12}")
_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{43}=")
_STANDARD_SECRET = re.compile(r"whsec_[A-Za-z0-9+/]{43}=")
_ORGANIZATION_SECRET = re.compile(r"[0-9a-fA-F]{32}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MOST_ORGANIZATIONS = 8


class SignatureRefused(InvalidInput):
    """A delivery that is not taken; `reason` says why."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message, reason=reason)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A delivery whose signature is right; its type and timestamp may yet be unusable."""

    id: str
    type: str | None
    timestamp: datetime | None
    raw: bytes
    payload: dict[str, Any]
    triggered: bool
    """True for a made-up event, or one signed with an organization's id: never in production."""
    sent_at: datetime


def verify(
    raw: bytes,
    headers: Mapping[str, str],
    secrets: Sequence[str],
    *,
    now: datetime | None,
    allow_triggered: bool = False,
) -> Delivery:
    """Return the delivery if one of *secrets* signed these bytes, else raise SignatureRefused.

    A stored delivery has no age limit: give no *now*.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    message_id, seconds, given = _read_headers(lowered)
    sent_at = datetime.fromtimestamp(seconds, tz=UTC)
    content = f"{message_id}.{seconds}.".encode() + raw

    secret = _signer(content, given, sorted(filter(None, secrets), key=_is_organization_secret))
    organization = secret is not None and _is_organization_secret(secret)
    if secret is None:
        organization = _signer(content, given, list(_organizations(raw))) is not None
        if not organization:
            raise SignatureRefused("mismatch", "The signature matches no secret in POLAR_WEBHOOK_SECRET.")
    if now is not None and abs(now - sent_at) > TOLERANCE:
        raise SignatureRefused("stale", "webhook-timestamp is more than 5 minutes from now.")
    payload = _payload(raw)
    triggered = lowered.get("x-polar-triggered", "false").strip().lower() != "false"
    if not allow_triggered:
        if triggered:
            raise SignatureRefused(
                "triggered",
                "The delivery is a made-up one (x-polar-triggered); "
                "only --allow-triggered in the sandbox takes those.",
            )
        if organization:
            raise SignatureRefused(
                "organization_secret",
                "The delivery is signed with an organization id, which is no secret; "
                "only --allow-triggered in the sandbox takes those.",
            )
    return Delivery(
        id=message_id,
        type=usable_id(payload.get("type")),
        timestamp=usable_time(payload.get("timestamp")),
        raw=raw,
        payload=payload,
        triggered=triggered or organization,
        sent_at=sent_at,
    )


def sign(raw: bytes, *, id: str, secret: str, at: datetime) -> dict[str, str]:
    """Return the three headers that deliver *raw* as Polar would.

    The key is the decoded one for `whsec_` + 44 characters of base64 ending in `=` (Polar's
    secrets since September 2026), else the UTF-8 bytes of the whole secret.
    """
    seconds = int(at.timestamp() // 1)
    keys = list(_keys(secret))
    key = keys[-1] if _STANDARD_SECRET.fullmatch(secret) else keys[0]
    return {
        "webhook-id": id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": f"v1,{_signature(key, f'{id}.{seconds}.'.encode() + raw)}",
    }


def _read_headers(headers: Mapping[str, str]) -> tuple[str, int, list[str]]:
    """Return the delivery's id, its seconds since 1970 and its v1 signatures."""
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    for name in names:
        if name not in headers:
            raise SignatureRefused("missing_header", f"The header {name} is missing.")
    values = [headers[name].strip(" \t") for name in names]
    if usable_id(values[0]) is None or not values[0].isprintable():
        raise SignatureRefused("malformed", "webhook-id is no printable id.")
    if not _SECONDS.fullmatch(values[1]) or int(values[1]) >= 253_402_300_800:
        raise SignatureRefused("malformed", "webhook-timestamp is no time in whole seconds.")
    parts = (part.partition(",") for part in values[2].split())
    given = [text for version, _, text in parts if version == "v1" and _SIGNATURE.fullmatch(text)]
    if not given:
        raise SignatureRefused("malformed", "webhook-signature holds no v1 signature.")
    return values[0], int(values[1]), given


def _signer(content: bytes, given: Sequence[str], secrets: Sequence[str]) -> str | None:
    """Return the first of *secrets* that made one of the *given* signatures."""
    for secret in secrets:
        for key in _keys(secret):
            expected = _signature(key, content).encode()
            if any(hmac.compare_digest(expected, text.encode()) for text in given):
                return secret
    return None


def _signature(key: bytes, content: bytes) -> str:
    return base64.b64encode(hmac_data(key, content)).decode()


def _keys(secret: str) -> Iterator[bytes]:
    """Yield the keys that *secret* may stand for: its own bytes, and what its base64 decodes to."""
    yield secret.encode("utf-8", "surrogateescape")
    encoded = secret.removeprefix("whsec_")
    try:
        decoded = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        return
    if decoded:
        yield decoded


def _is_organization_secret(secret: str) -> bool:
    return _ORGANIZATION_SECRET.fullmatch(secret) is not None


def _organizations(raw: bytes) -> Iterator[str]:
    """Yield the dash-less organization ids in the body: what `polar listen` signs with."""
    try:
        waiting: list[object] = [load_json(raw)]
    except ValueError:
        return
    seen: set[str] = set()
    while waiting and len(seen) < _MOST_ORGANIZATIONS:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        if not isinstance(value, dict):
            continue
        found = [value.get("organization_id")]
        if str(value.get("type")).startswith("organization.") and isinstance(value.get("data"), dict):
            found.append(value["data"].get("id"))
        for text in found:
            if isinstance(text, str) and _UUID.fullmatch(text):
                secret = text.replace("-", "").lower()
                if secret not in seen:
                    seen.add(secret)
                    yield secret
        waiting.extend(value.values())


def _payload(raw: bytes) -> dict[str, Any]:
    try:
        payload = load_json(raw)
    except ValueError as error:
        raise SignatureRefused("not_json", f"The body is no JSON: {error}.") from None
    if not isinstance(payload, dict):
        raise SignatureRefused("not_json", "The body is no JSON object.")
    return payload
