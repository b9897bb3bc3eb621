"""S7: signed webhooks over HTTP, 64 connections, each answered after its commit, against a naive receiver.

Both are servers of one process, and get the same real deliveries: recorded ones of ever new customers,
signed with a secret that both know. The naive one is `naive_webhooks`; it has no log.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polar.v2026_10 import webhooks

from polarcredits.webhooks.signature import sign
from tests.benchmarks.deliveries import SECRET, deliveries
from tests.benchmarks.harness import Measurement, at_least, at_most, folder, interleaved
from tests.server.serving import serving
from tests.server.wire import answer, request
from tests.stand_in.documents import complete

NAME = "S7"
GOAL = "signed webhooks over HTTP, 64 connections ≥ 5 of FastAPI + validate_event + ORM; p99 < 0.5 s"
CONNECTIONS = 64
SLOWEST = 0.5


def run(quick: bool) -> list[Measurement]:
    """Send the same deliveries to both, in turn."""
    many, rounds = (1_500, 3) if quick else (6_000, 5)
    with folder() as place, _ours(place) as ours, _naive(place) as naive:
        load = {"ours": _Load(ours, many), "naive": _Load(naive, many)}
        for each in load.values():
            each.send()
        figures = interleaved({name: each.send for name, each in load.items()}, rounds)
        p99 = load["ours"].p99[1:]
    what = f"{many:,} deliveries, {CONNECTIONS} connections, SQLite"
    return [
        at_least(NAME, what, figures["ours"], figures["naive"], 5.0),
        at_most(NAME, f"p99 of their answers against {SLOWEST} s", p99, [SLOWEST] * len(p99), 1.0),
    ]


class _Load:
    """Sends the next so many deliveries each time; the same ones to whatever server."""

    def __init__(self, port: int, many: int) -> None:
        self.p99: list[float] = []
        self._port = port
        self._many = many
        self._bodies = _bodies()

    def send(self) -> float:
        """Return how many deliveries a second were answered 202."""
        now = datetime.now(UTC)
        requests = [
            request(body, sign(body, id=id, secret=SECRET, at=now))
            for id, body in itertools.islice(self._bodies, self._many)
        ]
        began = time.perf_counter()
        times = asyncio.run(_post_all(self._port, requests))
        seconds = time.perf_counter() - began
        self.p99.append(statistics.quantiles(times, n=100)[98])
        return len(times) / seconds


def _bodies() -> Iterator[tuple[str, bytes]]:
    """Yield ids and bodies: those of one customer, with the fields that the SDK insists on, of ever others.

    The SDK's types do not know a real `customer.state_changed`, which is left out.
    """
    all_of_two = itertools.takewhile(lambda each: b"00000002" not in each.body, deliveries(10_000))
    told = []
    for each in all_of_two:
        payload = json.loads(each.body)
        if b"00000001" in each.body and payload["type"] != "customer.state_changed":
            whole = complete(payload, _model(payload["type"]))
            told.append(json.dumps(whole, separators=(",", ":")).encode())
    for number in itertools.count(16):
        mark = b"%08x" % number
        for place, body in enumerate(told):
            yield f"{number:08x}-{place}", body.replace(b"00000001", mark)


def _model(type: str) -> Any:
    """Return the SDK's type of an event."""
    words = type.replace(".", "_").split("_")
    return getattr(webhooks, f"Webhook{''.join(word.capitalize() for word in words)}Payload")


async def _post_all(port: int, requests: list[bytes]) -> list[float]:
    """Post all of them; return how long each took. Raises AssertionError unless all were taken."""
    waiting = iter(requests)
    times: list[float] = []

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for each in waiting:
            began = time.perf_counter()
            writer.write(each)
            got = await answer(reader)
            times.append(time.perf_counter() - began)
            assert got.status == 202, got
        writer.close()

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return times


@contextmanager
def _ours(place: Path) -> Iterator[int]:
    with serving(
        place / "run", f"sqlite:///{place}/ours.db", environ={"POLAR_WEBHOOK_SECRET": SECRET}
    ) as server:
        yield server.port


@contextmanager
def _naive(place: Path) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.naive_webhooks"],
        env={**os.environ, "DATABASE": str(place / "naive.db"), "SECRET": SECRET},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()
