"""What nobody would send, some of it well signed: no 5xx, no crash, nothing unverified stored."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from polarcredits.ledger.verify import verify
from tests.server.hostile import attack, memory, stored_unverified
from tests.server.serving import opened, serving

SEEDS = range(1500)


def test_mutated_deliveries(url: str, tmp_path: Path) -> None:
    """Each gets an answer of the table; the ledger's laws hold; memory does not grow with them."""
    with serving(tmp_path / "run", url) as server:
        asyncio.run(attack(server.port, range(-200, 0)))
        before = memory(server, 1)
        counted = asyncio.run(attack(server.port, SEEDS))
        assert memory(server, 1) < before + 40_000
        assert server.workers(1) == [server.process.pid]
    assert sum(counted.values()) == len(SEEDS)
    assert set(counted) <= {202, 400, 401, 403}, counted
    assert min(counted[202], counted[400], counted[401]) > 50
    assert stored_unverified(url, SEEDS) == []
    with opened(url) as ledger:
        assert verify(ledger).problems == []


def test_secrets_are_nowhere(tmp_path: Path) -> None:
    """Not in the log, the metrics, the answers or the process list, whatever is sent and goes wrong."""
    url = f"sqlite:///{tmp_path / 'credits.db'}"
    secrets = {
        "POLAR_WEBHOOK_SECRET": "whsec_tell_nobody_0",
        "POLAR_ACCESS_TOKEN": "polar_oat_tell_nobody_1",
        "POLARCREDITS_SECRET_KEY": "tell_nobody_2_0123456789abcdef0123456789abcdef",
    }
    with serving(tmp_path / "run", url, environ=secrets) as server:
        asyncio.run(attack(server.port, range(100)))
        token = "tell_nobody_3.abcdefghijklmnopqrstuvwxyz"
        told = [server.get(path)[1] for path in (f"/billing/{token}", f"/bill/{token}?token={token}")]
        told += [server.get("/metrics")[1], server.get("/readyz")[1]]
        told.append(Path(f"/proc/{server.process.pid}/cmdline").read_text())
        server.get("/pricing?user=tell_nobody_4", {"authorization": "Bearer tell_nobody_5"})
        assert server.stop() == 0
        told.append(server.log.read_text())
    assert [text for text in told if "tell_nobody" in text] == []


@pytest.mark.parametrize("personal", ["alice@", "user_alice", "polar_c_"])
def test_payloads_are_not_in_the_log(personal: str, tmp_path: Path) -> None:
    """Who bought what is in the database, not in the log."""
    from tests.server.wire import flood, recordings

    url = f"sqlite:///{tmp_path / 'credits.db'}"
    with serving(tmp_path / "run", url) as server:
        asyncio.run(flood(server.port, recordings()[:20], connections=4))
        assert server.stop() == 0
        assert any(personal in each.raw.decode() for each in recordings()[:20])
        assert personal not in server.log.read_text()
