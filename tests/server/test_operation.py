"""Starting, stopping, watching: what an operator relies on."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from polarcredits.ledger import schema
from polarcredits.refill import refill
from polarcredits.webhooks.inbox import Inbox
from polarcredits.webhooks.reading import BarePayload
from tests.server.conftest import sqlite
from tests.server.serving import Serving, opened, serving
from tests.server.wire import Sending, answer, exchange, flood, post, recordings, request, told

GOOD = recordings()[0]
THEN = "2026-01-01T00:00:00Z"


def refused(folder: Path, database: str, **how: Any) -> tuple[int, dict[str, Any]]:
    """Start a server that must not start; return its exit code and error."""
    server = Serving(folder, database, **how)
    try:
        code = server.process.wait(20)
        return code, server.document["error"]
    finally:
        server.close()


async def until_refused(port: int) -> None:
    """Return once nobody takes connections any more."""
    async with asyncio.timeout(5):
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await exchange(port, request(GOOD.raw, GOOD.headers()))


def test_settings_that_are_missing_or_wrong(tmp_path: Path) -> None:
    """Found before anything is served: 7, naming the setting."""
    url = sqlite(tmp_path)
    for environ, options, setting in (
        ({"POLAR_WEBHOOK_SECRET": " , "}, [], "POLAR_WEBHOOK_SECRET"),
        ({"POLAR_ENVIRONMENT": "production"}, ["--allow-triggered"], "POLAR_ENVIRONMENT"),
        ({}, ["--host", "no-such-host.invalid"], "--port"),
        ({}, ["--host", "a..b"], "--port"),
        ({}, ["--host", "x" * 70], "--port"),
        ({}, ["--trusted-proxies", "10.0.0.1,proxy"], "--trusted-proxies"),
        ({}, ["--trusted-proxies", "10.0.0.1/8"], "--trusted-proxies"),
        ({"POLARCREDITS_PUBLIC_URL": "https://example.com/a b"}, [], "POLARCREDITS_PUBLIC_URL"),
    ):
        code, error = refused(tmp_path / "run", url, environ=environ, options=options)
        assert (code, error["code"], error["setting"]) == (7, "config", setting)


def test_a_database_that_cannot_be_used(postgres: str, tmp_path: Path) -> None:
    """Not migrated or not there: 8, with what mends it."""
    code, error = refused(tmp_path / "run", postgres)
    assert (code, error["code"]) == (8, "database")
    assert "polarcredits db upgrade" in error["message"]
    code, error = refused(tmp_path / "run", "postgresql://nobody@127.0.0.1:1/none")
    assert (code, error["code"]) == (8, "database")


def test_another_environment(tmp_path: Path) -> None:
    """A database of sandbox purchases serves no production: 7."""
    url = sqlite(tmp_path)
    with opened(url) as ledger:
        payload = {"type": "x", "timestamp": "2026-01-01T00:00:00Z", "data": {}}
        bare = BarePayload(where="test", id="x", payload=payload, raw=json.dumps(payload).encode())
        Inbox(ledger, environment="sandbox", secrets=[]).ingest(bare, now=ledger.call().now, unsigned=True)
    code, error = refused(tmp_path / "run", url, environ={"POLAR_ENVIRONMENT": "production"})
    assert (code, error["setting"]) == (7, "POLAR_ENVIRONMENT")


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """The message names the address and the options."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, error = refused(tmp_path / "run", sqlite(tmp_path), options=["--port", str(port)])
    assert code == 7
    assert f"127.0.0.1:{port}" in error["message"]
    assert "--port" in error["message"]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(("sig", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 0)])
def test_graceful_stop(workers: str, sig: int, code: int, tmp_path: Path) -> None:
    """What is in flight is finished, the rest refused, and the process ends by itself."""
    with serving(tmp_path / "run", sqlite(tmp_path), options=["--workers", workers]) as server:
        whole = request(GOOD.raw, GOOD.headers())

        async def trial() -> int:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(whole[:-100])
            idle, idler = await asyncio.open_connection("127.0.0.1", server.port)
            await asyncio.sleep(0.3)
            os.kill(server.process.pid, sig)
            assert await idle.read() == b""
            await until_refused(server.port)
            writer.write(whole[-100:])
            got = await answer(reader)
            assert await reader.read() == b""
            writer.close()
            idler.close()
            return got.status

        assert asyncio.run(trial()) == 202
        assert server.process.wait(10) == code


def test_a_log_that_nobody_reads_ends_no_server(tmp_path: Path) -> None:
    """A worker that dies is replaced also when stderr is a pipe whose reader has gone."""
    reader, writer = os.pipe()
    with serving(tmp_path / "run", sqlite(tmp_path), options=["--workers", "2"], stderr=writer) as server:
        os.close(writer)
        os.close(reader)
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        before = set(children.read_text().split())
        assert len(before) == 2
        os.kill(int(min(before)), signal.SIGKILL)
        until = time.monotonic() + 20
        while len(now := set(children.read_text().split())) < 2 or now == before:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert server.get("/healthz")[0] == 200
        assert server.stop() == 0


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    """Others serve meanwhile; figures of all of them, the dead one's too, are added up."""
    with serving(tmp_path / "run", sqlite(tmp_path), options=["--workers", "2"]) as server:
        workers = server.workers(2)
        asyncio.run(flood(server.port, recordings()[:40], connections=16))
        os.kill(workers[0], signal.SIGKILL)
        assert server.get("/healthz")[0] == 200
        now = server.workers(3)
        assert len(set(now)) == 3
        asyncio.run(flood(server.port, recordings()[:40], connections=16))
        metrics = server.get("/metrics")[1]
        assert _total(metrics, "polarcredits_deliveries_total") == 80
        assert _total(metrics, "polarcredits_deliveries_total", 'outcome="duplicate"') == 40
        assert {line["worker"] for line in server.lines() if line["event"] == "worker_died"} == {workers[0]}
        assert server.stop() == 0
    for pid in now[1:]:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_looks_for_garbage_often(tmp_path: Path) -> None:
    """Not as seldom as a short command may: what goes in circles would pile up for as long as it lives."""
    program = """
import gc, os, signal, socket, threading
from polarcredits.server.worker import run_worker
from polarcredits.settings import load_settings
gc.set_threshold(100_000, 20, 20)
listening = socket.create_server(("127.0.0.1", 0))
def stop_once_served():
    with socket.create_connection(listening.getsockname()) as asking:
        asking.sendall(b"GET /healthz HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n")
        asking.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=stop_once_served).start()
run_worker(load_settings(), listening, allow_triggered=False, trusted_proxies=None)
print(*gc.get_threshold())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "POLARCREDITS_DATABASE_URL": sqlite(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    young, middle, old = map(int, ran.stdout.split())
    assert young * middle * old <= 1_000_000


def test_workers_do_not_outlive_the_server(tmp_path: Path) -> None:
    """If only the first process is killed, its workers end and free the port."""
    with serving(tmp_path / "run", sqlite(tmp_path), options=["--workers", "2"]) as server:
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(10)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", server.port)):
                    return
            time.sleep(0.05)
        raise AssertionError("a worker still listens")


def _total(metrics: str, name: str, label: str = "") -> float:
    lines = [line for line in metrics.splitlines() if line.startswith(name + "{") and label in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def _value(metrics: str, name: str) -> float:
    return next(float(line.split()[1]) for line in metrics.splitlines() if line.startswith(f"{name} "))


def test_metrics(tmp_path: Path) -> None:
    """Types of which there is no end are one; failed events, age, refill and pool are there."""
    url = sqlite(tmp_path)
    with serving(tmp_path / "run", url) as server:
        for number in range(3):
            post(server.port, told(f"a-{number}", {"type": f"t{number}", "timestamp": THEN}))
        post(server.port, told("paid", {"type": "order.paid", "timestamp": THEN, "data": {}}))
        post(server.port, Sending(id="wrong", raw=b"{}", secret="wrong"))
        with opened(url) as ledger:
            refill(ledger)
            due = ledger.call().now
        metrics = server.get("/metrics")[1]
    deliveries = set(re.findall(r'deliveries_total{outcome="(\w+)",type="([\w.]+)"} (\d)', metrics))
    assert deliveries == {
        ("ignored", "other", "3"),
        ("failed", "order.paid", "1"),
        ("mismatch", "unverified", "1"),
    }
    assert _value(metrics, "polarcredits_database_up") == 1
    assert _value(metrics, "polarcredits_failed_events") == 1
    assert _value(metrics, "polarcredits_dead_events") == 0
    assert 0 < _value(metrics, "polarcredits_inbox_age_seconds") < 60
    assert abs(_value(metrics, "polarcredits_last_refill_timestamp_seconds") - due.timestamp()) < 60
    assert _value(metrics, "polarcredits_due_age_seconds") == 0
    assert 'polarcredits_database_connections{state="idle"}' in metrics
    assert re.search(r'request_seconds_count{route="/webhooks/polar"} 5\.0', metrics)


def test_request_ids(tmp_path: Path) -> None:
    """A sane id is kept, in the answer and in the log; another is replaced."""
    with serving(tmp_path / "run", sqlite(tmp_path)) as server:
        kept = post(server.port, GOOD, x_request_id="trace-0123456789")
        assert kept.headers["x-request-id"] == "trace-0123456789"
        for bad in ("short", "x" * 65, 'quote"quote"', "ünsane-12345"):
            made = post(server.port, GOOD, x_request_id=bad)
            assert re.fullmatch("[0-9a-f]{32}", made.headers["x-request-id"])
        assert server.stop() == 0
        ids = [line["request_id"] for line in server.lines() if line["event"] == "request"]
    assert "trace-0123456789" in ids
    assert made.headers["x-request-id"] in ids


def test_proxy_headers(tmp_path: Path) -> None:
    """A proxy of this machine says who the client is; with other proxies trusted it does not."""
    url = sqlite(tmp_path)
    seen = []
    for options in ([], ["--trusted-proxies", "10.0.0.0/8"]):
        with serving(tmp_path / f"run{len(options)}", url, options=options) as server:
            post(server.port, GOOD, x_forwarded_for="203.0.113.9")
            server.stop()
            seen.append([line["client"] for line in server.lines() if line.get("method") == "POST"])
    assert seen == [["203.0.113.9"], ["127.0.0.1"]]


def test_an_ipv6_address(tmp_path: Path) -> None:
    """Taken with brackets and without, told with them."""
    for name, host in (("bare", "::1"), ("brackets", "[::1]")):
        with serving(tmp_path / name, sqlite(tmp_path), options=["--host", host]) as server:
            assert server.url.startswith("http://[::1]:")
            assert server.stop() == 0


def test_readiness(url: str, tmp_path: Path) -> None:
    """Green, red while the database is behind, green again without a restart; alive all the time."""
    with serving(tmp_path / "run", url) as server:
        assert server.get("/readyz") == (200, '{"status":"ready"}')
        engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        for version, status in (("0000", 503), ("9999", 503), (schema.HEAD, 200)):
            with engine.begin() as connection:
                connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": version})
            assert server.get("/readyz")[0] == status
            assert server.get("/healthz")[0] == 200
        with engine.begin() as connection:
            connection.execute(text("UPDATE settings SET value = 'production'"))
            connection.execute(text("INSERT INTO settings VALUES ('polar_environment', 'production')"))
        assert server.get("/readyz") == (503, '{"status":"not_ready","code":"config"}')
        assert post(server.port, GOOD).status == 503
        engine.dispose()


def test_failed_events_heal(tmp_path: Path) -> None:
    """What failed is applied by the running server once that is possible."""
    url = sqlite(tmp_path)
    raw = b'{"type":"subscription.active","timestamp":"2026-01-01T00:00:00Z","data":{}}'
    with serving(tmp_path / "run", url) as server:
        assert post(server.port, Sending(id="heals", raw=raw)).json == {"status": "failed"}
        engine = create_engine(url)
        with engine.begin() as connection:
            mended = raw.replace(b"subscription.active", b"something.else")
            connection.execute(
                text("UPDATE webhook_events SET type = 'something.else', raw = :raw, next_attempt_at = 0"),
                {"raw": mended},
            )
        engine.dispose()
        until = time.monotonic() + 30
        while time.monotonic() < until and _value(server.get("/metrics")[1], "polarcredits_failed_events"):
            time.sleep(0.3)
        assert _total(server.get("/metrics")[1], "polarcredits_event_retries_total") == 1
    with opened(url) as ledger:
        row = Inbox(ledger, environment="sandbox", secrets=[]).stored("heals")
    assert (row.status, row.attempts) == ("ignored", 2)


def test_json_and_people(tmp_path: Path) -> None:
    """Where it listens is told on stderr to people, on stdout under --json; nothing else is printed."""
    with serving(tmp_path / "run", sqlite(tmp_path)) as server:
        assert set(server.document) == {"url", "workers"}
        assert server.stop() == 0
        assert server.process.stdout is not None
        assert server.process.stdout.read() == b""
