"""Deliveries as nobody would send them: mutated bytes, headers and JSON, some of them well signed.

    python -m tests.server.hostile [NUMBER]

sends so many (default 200,000) at a server with two workers on SQLite and tells what it answered, how
its memory grew, and whether anything that is no verified event was stored.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarcredits.webhooks.inbox import Inbox
from tests.server.serving import Serving, opened, serving
from tests.server.wire import Sending, answer, chunked, recordings, request

RECORDED = recordings()
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e308, 2**53, 2**63, 10**100, "", " ", "x" * 5000, "\x00", "\ud800",
    "é", "2026-13-45T99:99:99Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", [], {}, [[]], {"id": 1},
    "polar:x", "../../x", "'; DROP TABLE accounts; --", "<script>", "%s%n", [None] * 50,
)  # fmt: skip


PAID = b'{"type":"order.paid","timestamp":"2026-01-01T00:00:00Z","data":'


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """A request; `verified` says that the signature is right, so that it may be stored."""

    data: bytes
    id: str
    verified: bool


def hostile(seed: int) -> Hostile:
    """Return a mutated delivery; the same for the same seed."""
    luck = random.Random(seed)
    base = luck.choice(RECORDED)
    id = f"hostile-{seed}"
    kind = luck.choice((_bytes, _headers, _structure, _structure, _structure, _shape))
    return kind(luck, id, base.raw)


def _bytes(luck: random.Random, id: str, raw: bytes) -> Hostile:
    """The body is changed after it was signed."""
    body = bytearray(raw)
    for _ in range(luck.randint(1, 20)):
        at = luck.randrange(len(body))
        luck.choice((_flip, _cut, _insert))(luck, body, at)
    same = bytes(body) == raw
    return Hostile(data=request(bytes(body), Sending(id=id, raw=raw).headers()), id=id, verified=same)


def _flip(luck: random.Random, body: bytearray, at: int) -> None:
    body[at] ^= 1 << luck.randrange(8)


def _cut(luck: random.Random, body: bytearray, at: int) -> None:
    del body[at : at + luck.randint(1, 5)]
    body += b" " * (not body)


def _insert(luck: random.Random, body: bytearray, at: int) -> None:
    body[at:at] = luck.randbytes(luck.randint(1, 5))


def _headers(luck: random.Random, id: str, raw: bytes) -> Hostile:
    """A header is dropped, doubled, or another."""
    headers = list(Sending(id=id, raw=raw).headers().items())
    at = luck.randrange(2, len(headers))
    name, value = headers[at]
    junk = "".join(chr(luck.choice((*range(33, 127), *range(160, 256)))) for _ in range(luck.randint(0, 300)))
    headers[at : at + 1] = luck.choice(
        ([], [(name, value), (name, junk)], [(name, junk)], [(name, value[:-1])], [(name, value + value)])
    )
    return Hostile(data=request(raw, headers), id=id, verified=False)


def _structure(luck: random.Random, id: str, raw: bytes) -> Hostile:
    """The JSON says something else, and is well signed."""
    payload = json.loads(raw)
    for _ in range(luck.randint(1, 6)):
        places = list(_places(payload))
        if not places:
            break
        holder, key = luck.choice(places)
        if luck.random() < 0.3:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(luck.choice(VALUES))
    sending = Sending(id=id, raw=json.dumps(payload).encode())
    return Hostile(data=request(sending.raw, sending.headers()), id=id, verified=True)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _shape(luck: random.Random, id: str, raw: bytes) -> Hostile:
    """The body is hardly JSON, and is well signed; or it comes in an unusual way."""
    body = luck.choice(
        (
            b"[" * luck.randint(1, 100_000),
            b'{"a":' * luck.randint(1, 50_000),
            b'{"type":"order.paid","timestamp":"2026-01-01T00:00:00Z","data":'
            + b"[" * 900
            + b"]" * 900
            + b"}",
            b'{"type":"order.paid","timestamp":"2026-01-01T00:00:00Z","data":' + b"9" * 5000 + b"}",
            b'{"type":"order.paid","data":1e999,"timestamp":NaN}',
            b'{"type":"order.paid","type":"order.refunded","timestamp":"2026-01-01T00:00:00Z"}',
            b"\xef\xbb\xbf" + raw,
            raw.decode().encode("utf-16"),
            luck.randbytes(luck.randint(0, 3000)),
            raw[: luck.randrange(len(raw))],
        )
    )
    sending = Sending(id=id, raw=body)
    if luck.random() < 0.3:
        headers = sending.headers() | {"transfer-encoding": "chunked"}
        data = request(b"", headers, length=False) + chunked(body, luck.randint(200, 5000))
    else:
        data = request(body, sending.headers())
    return Hostile(data=data, id=id, verified=True)


async def attack(port: int, seeds: range, *, connections: int = 16) -> Counter[int]:
    """Send hostile deliveries; count the answers by status, 0 where the connection was just closed."""
    waiting = iter(seeds)
    counted: Counter[int] = Counter()

    async def one() -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for seed in waiting:
            streams = streams or await asyncio.open_connection("127.0.0.1", port)
            streams[1].write(hostile(seed).data)
            try:
                async with asyncio.timeout(20):
                    got = await answer(streams[0])
            except (OSError, asyncio.IncompleteReadError):
                counted[0] += 1
                streams[1].close()
                streams = None
                continue
            counted[got.status] += 1
            if got.headers.get("connection") == "close":
                streams[1].close()
                streams = None
        if streams is not None:
            streams[1].close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return counted


def stored_unverified(url: str, seeds: range) -> list[str]:
    """Return the ids of stored events that no right signature vouches for."""
    with opened(url) as ledger:
        rows = Inbox(ledger, environment="sandbox", secrets=[]).list(limit=None)
        found = {row.id for row in rows}
    return [each.id for each in map(hostile, seeds) if each.id in found and not each.verified]


def memory(server: Serving, workers: int) -> int:
    """Return the largest worker's resident memory, in KiB."""
    sizes = []
    for pid in server.workers(workers):
        status = Path(f"/proc/{pid}/status").read_text()
        sizes.append(int(status.split("VmRSS:")[1].split()[0]))
    return max(sizes)


def main(arguments: list[str]) -> int:
    """Attack, and tell; 1 if anything was wrong."""
    number = int(arguments[0]) if arguments else 200_000
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/credits.db"
        with serving(Path(folder) / "run", url, options=["--workers", "2"]) as server:
            total: Counter[int] = Counter()
            began, step = time.monotonic(), max(1, number // 10)
            for start in range(0, number, step):
                total += asyncio.run(attack(server.port, range(start, min(start + step, number))))
                kib, seconds = memory(server, 2), time.monotonic() - began
                print(
                    f"{sum(total.values()):>7} sent, {seconds:5.0f} s, {kib} KiB, {dict(total)}", flush=True
                )
            alive = len(set(server.workers(2))) == 2 and server.get("/healthz")[0] == 200
        bad = stored_unverified(url, range(number))
    wrong = [status for status in total if status >= 500]
    print(f"alive: {alive}; 5xx: {wrong}; stored without a right signature: {len(bad)}")
    return 0 if alive and not wrong and not bad else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
