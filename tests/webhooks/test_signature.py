"""Signatures: both key forms, every reason to refuse, and nothing else that ever happens."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from polarcredits.webhooks.signature import SignatureRefused, sign, verify
from tests.webhooks.recordings import FILES, SECRET, recorded

NOW = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
STANDARD = "whsec_" + base64.b64encode(bytes(range(32))).decode()
ORGANIZATION = "bd06c7a1-1225-4a20-882a-2fdd6d380a8a"
LISTEN = ORGANIZATION.replace("-", "")
BODY = b'{"type":"order.paid","timestamp":"2026-11-23T06:00:00Z","data":{"id":"o1"}}'
OWNED = json.dumps({"type": "x", "data": {"product": {"organization_id": ORGANIZATION}}}).encode()


def signed(raw: bytes = BODY, *, secret: str = SECRET, at: datetime = NOW) -> dict[str, str]:
    return sign(raw, id="evt-1", secret=secret, at=at)


def reason(
    raw: bytes,
    headers: dict[str, str],
    secrets: list[str] | None = None,
    *,
    now: datetime | None = NOW,
    allow_triggered: bool = False,
) -> str:
    with pytest.raises(SignatureRefused) as caught:
        verify(raw, headers, secrets or [SECRET], now=now, allow_triggered=allow_triggered)
    assert caught.value.fields == {"reason": caught.value.reason}
    assert all(secret not in caught.value.message for secret in secrets or [SECRET])
    return caught.value.reason


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recorded_deliveries_verify(path: Path) -> None:
    """Every recorded delivery is right, with its age left out of account."""
    for stored in recorded(path):
        read = verify(stored.raw, stored.headers, ["other", SECRET], now=None)
        assert read.id == stored.headers["webhook-id"]
        assert read.type
        assert read.timestamp
        assert not read.triggered
        assert reason(stored.raw, stored.headers) == "stale"


@pytest.mark.parametrize("secret", [SECRET, STANDARD, "polar_whs_x", "any text of one's own", "é"])
def test_signed_is_verified(secret: str) -> None:
    """What we sign for a secret of any form verifies, among other secrets too."""
    read = verify(BODY, signed(secret=secret), [STANDARD, secret, SECRET], now=NOW)
    assert (read.id, read.type, read.timestamp) == ("evt-1", "order.paid", NOW)
    assert (read.raw, read.sent_at, read.payload["data"]) == (BODY, NOW, {"id": "o1"})


def test_both_keys_of_one_secret() -> None:
    """A secret of 43 characters is accepted decoded as well: its text does not tell its form."""
    for key in (SECRET, SECRET.encode(), STANDARD, STANDARD.encode()):
        signature = Webhook(key).sign("evt-1", NOW, BODY.decode())
        headers = signed() | {"webhook-signature": signature}
        assert verify(BODY, headers, [SECRET, STANDARD], now=NOW).id == "evt-1"


def test_the_form_we_sign_with() -> None:
    """44 characters of base64 are decoded; anything else is taken as it stands."""
    legacy = Webhook(SECRET.encode()).sign("evt-1", NOW, BODY.decode())
    assert signed()["webhook-signature"] == legacy
    standard = Webhook(STANDARD).sign("evt-1", NOW, BODY.decode())
    assert signed(secret=STANDARD)["webhook-signature"] == standard


def test_several_signatures_and_any_case() -> None:
    """One right v1 signature among others will do, whatever the case of the headers' names."""
    headers = signed()
    headers["webhook-signature"] = f"v2,abc v1,{'A' * 43}= {headers['webhook-signature']} junk"
    shouted = {name.upper(): value for name, value in headers.items()}
    assert verify(BODY, shouted, [SECRET], now=NOW).id == "evt-1"


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_missing_header(name: str) -> None:
    """An absent header is named; one that is there, but empty, is malformed."""
    headers = signed()
    del headers[name]
    assert reason(BODY, headers) == "missing_header"
    assert reason(BODY, headers | {name: ""}) == "malformed"
    assert reason(BODY, headers | {name: " "}) == "malformed"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook-id", "a" * 256),
        ("webhook-id", "a\x00b"),
        ("webhook-timestamp", "soon"),
        ("webhook-timestamp", "-1"),
        ("webhook-timestamp", "nan"),
        ("webhook-timestamp", "1795413600.5"),
        ("webhook-timestamp", "٣"),
        ("webhook-timestamp", "9" * 12),
        ("webhook-timestamp", "9" * 400),
        ("webhook-signature", "v1"),
        ("webhook-signature", "v1,"),
        ("webhook-signature", "v1,é"),
        ("webhook-signature", "v2," + "A" * 43 + "="),
        ("webhook-signature", ",,, v1,====="),
    ],
)
def test_malformed(name: str, value: str) -> None:
    """A header that cannot be read is refused before anything is computed."""
    assert reason(BODY, signed() | {name: value}) == "malformed"


def test_mismatch() -> None:
    """Another secret, body, id or time."""
    assert reason(BODY, signed(), ["another"]) == "mismatch"
    assert reason(BODY + b" ", signed()) == "mismatch"
    assert reason(BODY, signed() | {"webhook-id": "evt-2"}) == "mismatch"
    assert reason(BODY, signed() | {"webhook-timestamp": "1795413601"}) == "mismatch"
    assert reason(b"\xff", signed()) == "mismatch"
    with pytest.raises(SignatureRefused, match="POLAR_WEBHOOK_SECRET"):
        verify(BODY, signed(secret=""), ["", ""], now=NOW)


def test_age() -> None:
    """Five minutes either way, to the second; stored deliveries have no age."""
    for minutes in (5, -5):
        sent = NOW + timedelta(minutes=minutes)
        assert verify(BODY, signed(at=sent), [SECRET], now=NOW).sent_at == sent
        further = sent + timedelta(seconds=minutes)
        assert reason(BODY, signed(at=further)) == "stale"
        assert verify(BODY, signed(at=further), [SECRET], now=None).sent_at == further


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff",
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":' * 100_000,
        b"[" * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_not_json(raw: bytes) -> None:
    """A signed body that is no JSON object is told apart from a forged one."""
    assert reason(raw, signed(raw)) == "not_json"
    assert reason(raw, signed(raw, secret="another")) == "mismatch"


@pytest.mark.parametrize(
    "raw", [b"{}", b'{"type":1,"type":[]}', b'{"type":"","timestamp":"x"}', b'{"type":"\\ud800"}']
)
def test_unusable_type_is_accepted(raw: bytes) -> None:
    """Any signed JSON object is taken; what cannot be used of it is absent."""
    read = verify(raw, signed(raw), [SECRET], now=NOW)
    assert read.type is None
    assert read.timestamp is None


@pytest.mark.parametrize("value", ["true", "1", "", "TRUE"])
def test_triggered(value: str) -> None:
    """A made-up event is taken only where that is allowed."""
    headers = signed() | {"X-Polar-Triggered": value}
    assert reason(BODY, headers) == "triggered"
    assert verify(BODY, headers, [SECRET], now=NOW, allow_triggered=True).triggered
    assert not verify(BODY, signed() | {"x-polar-triggered": "false"}, [SECRET], now=NOW).triggered


@pytest.mark.parametrize("secrets", [[LISTEN], [LISTEN.upper(), LISTEN], [SECRET]])
def test_organization_secret(secrets: list[str]) -> None:
    """An organization's id is no secret, configured or found in the body."""
    headers = signed(OWNED, secret=LISTEN)
    assert reason(OWNED, headers, secrets) == "organization_secret"
    assert verify(OWNED, headers, secrets, now=NOW, allow_triggered=True).triggered
    late = NOW + timedelta(hours=1)
    assert reason(OWNED, headers, secrets, now=late, allow_triggered=True) == "stale"


def test_organization_events_and_crowds() -> None:
    """The id of an organization's own event counts; a body full of ids costs no more than eight."""
    own = json.dumps({"type": "organization.updated", "data": {"id": ORGANIZATION}}).encode()
    assert reason(own, signed(own, secret=LISTEN)) == "organization_secret"
    others = [{"organization_id": f"{n:08d}{ORGANIZATION[8:]}"} for n in range(1000)]
    crowd = json.dumps({"data": [{"organization_id": ORGANIZATION}, *others]}).encode()
    assert reason(crowd, signed(crowd, secret=LISTEN)) == "mismatch"


@given(st.integers(0, len(BODY) - 1), st.integers(1, 255))
def test_mutated_body_never_verifies(index: int, mask: int) -> None:
    """One changed byte is enough."""
    raw = bytearray(BODY)
    raw[index] ^= mask
    assert reason(bytes(raw), signed()) == "mismatch"


@given(st.integers(0, 43), st.characters(codec="ascii"))
def test_mutated_signature_never_verifies(index: int, character: str) -> None:
    """So is one changed character of the signature, even where base64 would not notice."""
    text = signed()["webhook-signature"].removeprefix("v1,")
    changed = text[:index] + character + text[index + 1 :]
    if changed != text:
        headers = signed() | {"webhook-signature": f"v1,{changed}"}
        assert reason(BODY, headers) in ("mismatch", "malformed")


@given(st.dictionaries(st.sampled_from([*signed(), "x-polar-triggered"]), st.text()), st.binary())
def test_nothing_else_is_raised(headers: dict[str, str], raw: bytes) -> None:
    """Whatever comes in, the answer is a refusal with a reason."""
    assert reason(raw, headers)
    assert reason(raw, signed() | headers)
