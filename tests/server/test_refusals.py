"""The table of answers: what is not as Polar sends it is refused, and nothing of it is stored."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from polarcredits.webhooks.inbox import Inbox
from tests.server.conftest import sqlite
from tests.server.serving import Serving, opened, serving
from tests.server.wire import PATH, Answer, Sending, chunked, exchange, post, recordings, request, told

SIGNED = ("webhook-id", "webhook-timestamp", "webhook-signature")
ORGANIZATION = "bd06c7a1-1225-4a20-882a-2fdd6d380a8a"
MIB = 1024 * 1024
GOOD = recordings()[0]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The database of the module's server."""
    return sqlite(tmp_path_factory.mktemp("refusals"))


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with two secrets, one of which is an organization's id."""
    environ = {"POLAR_WEBHOOK_SECRET": f"{GOOD.secret},whsec_other,{ORGANIZATION.replace('-', '')}"}
    with serving(tmp_path_factory.mktemp("server"), database, environ=environ) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_moves(request: pytest.FixtureRequest, database: str) -> Iterator[None]:
    """Nothing that is refused is stored."""
    before = events(database)
    yield
    if "taken" not in request.node.name:
        assert events(database) == before


def events(database: str) -> list[str]:
    """Return the ids of all stored events."""
    with opened(database) as ledger:
        inbox = Inbox(ledger, environment="sandbox", secrets=[])
        return sorted(row.id for row in inbox.list(limit=None))


def send(server: Serving, data: bytes) -> Answer:
    """Send bytes on a connection of their own."""
    return asyncio.run(exchange(server.port, data))


@pytest.mark.parametrize("name", SIGNED)
def test_header_absent(server: Serving, name: str) -> None:
    """A header that is not there: 400."""
    headers = {key: text for key, text in GOOD.headers().items() if key != name}
    assert send(server, request(GOOD.raw, headers)).status == 400


@pytest.mark.parametrize("name", SIGNED)
def test_header_twice(server: Serving, name: str) -> None:
    """A header that is there twice says two things, even if both are right: 401."""
    headers = list(GOOD.headers().items())
    right = dict(headers)[name]
    for other in (right, "v1,AAAA", "1"):
        for pairs in ([*headers, (name, other)], [(name, other), *headers]):
            assert send(server, request(GOOD.raw, pairs)).status == 401


MANGLED = {
    "webhook-id": ["x", "evt\x01", "a b", "é" * 300, "../../etc"],
    "webhook-timestamp": ["now", "-1", "1e9", "99999999999999999999", "12.5", "0x10", "१२"],
    "webhook-signature": ["v1", "v1,", "v2,abc", "nonsense", "v1,AAAA", "v1," + "A" * 43 + "=", ","],
}


@pytest.mark.parametrize(("name", "value"), [(name, text) for name in MANGLED for text in MANGLED[name]])
def test_header_mangled(server: Serving, name: str, value: str) -> None:
    """A header that is malformed or wrong: 401."""
    data = request(GOOD.raw, GOOD.headers() | {name: "MANGLED"}).replace(b"MANGLED", value.encode())
    assert send(server, data).status == 401


@pytest.mark.parametrize("minutes", [-5.1, 5.1, -60 * 24 * 400, 60 * 24])
def test_out_of_tolerance(server: Serving, minutes: float) -> None:
    """More than five minutes either way: 401, however well signed."""
    at = datetime.now(UTC) + timedelta(minutes=minutes)
    assert send(server, request(GOOD.raw, GOOD.headers(at))).status == 401


@pytest.mark.parametrize("minutes", [-4.9, 4.9])
def test_within_tolerance_is_taken(server: Serving, minutes: float) -> None:
    """Within five minutes either way it is taken."""
    at = datetime.now(UTC) + timedelta(minutes=minutes)
    assert send(server, request(GOOD.raw, GOOD.headers(at))).status == 202


def test_every_secret_is_taken(server: Serving, database: str) -> None:
    """While secrets are rotated each of them signs."""
    other = Sending(id="rotated", raw=GOOD.raw, secret="whsec_other")
    assert post(server.port, other).json == {"status": "ignored"}
    assert "rotated" in events(database)


def test_wrong_secret(server: Serving) -> None:
    """Another secret's signature: 401."""
    assert post(server.port, Sending(id="wrong", raw=GOOD.raw, secret="whsec_wrong")).status == 401


@pytest.mark.parametrize("value", ["true", "1", "", "yes", "false, true"])
def test_made_up(server: Serving, value: str) -> None:
    """A made-up delivery is refused though its signature is good: 403."""
    assert post(server.port, Sending(id="made-up", raw=GOOD.raw), x_polar_triggered=value).status == 403


def test_made_up_said_twice(server: Serving) -> None:
    """Of two headers the one that says so counts."""
    headers = list(Sending(id="made-up", raw=GOOD.raw).headers().items())
    for pair in (("false", "true"), ("true", "false")):
        pairs = [*headers, *(("x-polar-triggered", each) for each in pair)]
        assert send(server, request(GOOD.raw, pairs)).status == 403


def test_organization_secret(server: Serving) -> None:
    """An organization's id is no secret, configured or found in the body: 403; of another: 401."""
    mine = told("org", {"type": "order.created", "timestamp": "x", "data": {"organization_id": ORGANIZATION}})
    for secret in (ORGANIZATION.replace("-", ""), "7" * 32):
        raw = mine.raw.replace(ORGANIZATION.encode(), b"77777777-7777-7777-7777-777777777777")
        body = mine.raw if secret.startswith("bd") else raw
        assert post(server.port, Sending(id="org", raw=body, secret=secret)).status == 403
    assert post(server.port, Sending(id="org", raw=mine.raw, secret="8" * 32)).status == 401


def test_made_up_is_taken_where_it_is_allowed(tmp_path: Path) -> None:
    """In the sandbox `--allow-triggered` takes both."""
    database = sqlite(tmp_path)
    made_up = told("made-up", {"type": "x", "timestamp": "2026-01-01T00:00:00Z", "data": {}})
    listened = Sending(id="listened", raw=GOOD.raw, secret=ORGANIZATION.replace("-", ""))
    with serving(tmp_path / "run", database, options=["--allow-triggered"]) as allowing:
        assert post(allowing.port, made_up, x_polar_triggered="true").status == 202
        assert post(allowing.port, listened).status == 202
    assert events(database) == ["listened", "made-up"]


@pytest.mark.parametrize("change", ["cut", "padded", "one bit", "gzip", "reordered", "empty"])
def test_other_body(server: Serving, change: str) -> None:
    """A body that is not byte for byte what was signed: 401."""
    raw = GOOD.raw
    body = {
        "cut": raw[:-1],
        "padded": raw + b" ",
        "one bit": bytes([*raw[:50], raw[50] ^ 1, *raw[51:]]),
        "gzip": gzip.compress(raw),
        "reordered": json.dumps(json.loads(raw), sort_keys=True).encode(),
        "empty": b"",
    }[change]
    headers = GOOD.headers() | ({"content-encoding": "gzip"} if change == "gzip" else {})
    assert send(server, request(body, headers)).status == 401


def test_gzip_that_was_signed(server: Serving) -> None:
    """Nothing is unpacked: signed bytes that are no JSON are no JSON."""
    packed = Sending(id="packed", raw=gzip.compress(GOOD.raw))
    assert post(server.port, packed, content_encoding="gzip").status == 400


@pytest.mark.parametrize("raw", [b"", b"[]", b"1", b'"text"', b"null", b"{", b"\xff\xfe", b'{"a":NaN}'])
def test_no_object(server: Serving, raw: bytes) -> None:
    """Well signed, but no JSON object: 400."""
    assert post(server.port, Sending(id="no-object", raw=raw)).status == 400


@pytest.mark.parametrize("raw", [b"{}", b'{"type":5,"timestamp":[]}', b'{"type":"order.paid"}'])
def test_unusable_is_taken_and_kept_as_failed(server: Serving, database: str, raw: bytes) -> None:
    """An object without a usable type or timestamp is acknowledged, and kept with its error."""
    sending = Sending(id=f"unusable-{len(raw)}", raw=raw)
    answers = [post(server.port, sending) for _ in range(2)]
    assert [each.status for each in answers] == [202, 202]
    assert [each.json["status"] for each in answers] == ["failed", "duplicate"]
    with opened(database) as ledger:
        row = Inbox(ledger, environment="sandbox", secrets=[]).stored(sending.id)
    assert (row.status, row.raw) == ("failed", raw)
    assert row.error


def test_chunked_is_taken(server: Serving, database: str) -> None:
    """A body in chunks is the same body."""
    sending = Sending(id="chunked", raw=GOOD.raw)
    headers = sending.headers() | {"transfer-encoding": "chunked"}
    assert send(server, request(b"", headers, length=False) + chunked(GOOD.raw)).status == 202
    assert "chunked" in events(database)


@pytest.mark.parametrize("form", ["length", "chunked"])
def test_exactly_one_mebibyte_is_taken(server: Serving, database: str, form: str) -> None:
    """1 MiB is read and taken."""
    sending = _large(f"large-{form}", MIB)
    assert _send_as(server, sending, form).status == 202
    assert sending.id in events(database)


@pytest.mark.parametrize("form", ["length", "chunked"])
@pytest.mark.parametrize("size", [MIB + 1, 3 * MIB])
def test_more_than_one_mebibyte(server: Serving, form: str, size: int) -> None:
    """One byte more: 413, and the connection is closed."""
    answered = _send_as(server, _large("larger", size), form)
    assert (answered.status, answered.headers["connection"]) == (413, "close")


def test_a_large_body_is_not_waited_for(server: Serving) -> None:
    """A length that says too much is refused before any of the body came."""
    head = request(b"", [*GOOD.headers().items(), ("content-length", str(10**12))], length=False)
    assert send(server, head).status == 413
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head)
        while connection.recv(4096):
            pass


def _large(id: str, size: int) -> Sending:
    start = b'{"type":"x","timestamp":"2026-01-01T00:00:00Z","data":"'
    return Sending(id=id, raw=start + b"a" * (size - len(start) - 2) + b'"}')


def _send_as(server: Serving, sending: Sending, form: str) -> Answer:
    if form == "length":
        return send(server, request(sending.raw, sending.headers()))
    headers = sending.headers() | {"transfer-encoding": "chunked"}
    return send(server, request(b"", headers, length=False) + chunked(sending.raw, 60_000))


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_method(server: Serving, method: str) -> None:
    """Another method on that path: 405."""
    data = request(b"", {}, method=method)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(data)
        assert connection.recv(4096).startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize("path", ["/", "/webhooks", PATH + "/", PATH + "/x", "//webhooks/polar", "/docs"])
def test_unknown_path(server: Serving, path: str) -> None:
    """Another path: 404, well signed or not."""
    assert send(server, request(GOOD.raw, GOOD.headers(), path=path)).status == 404


SMUGGLED = [
    "content-length: 5\r\ncontent-length: 6",
    "content-length: 5\r\ntransfer-encoding: chunked, identity",
    "content-length: +5",
    "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
    "bad header: 1",
    "x" * 20_000 + ": 1",
]


@pytest.mark.parametrize("lines", SMUGGLED)
def test_ambiguous_heads(server: Serving, lines: str) -> None:
    """A head that two programs could read in two ways, or that does not end, is refused by HTTP itself."""
    data = f"POST {PATH} HTTP/1.1\r\nhost: x\r\n{lines}\r\n\r\nhello".encode()
    assert 400 <= send(server, data).status < 600
