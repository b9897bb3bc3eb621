"""Every delivery is taken once, whatever the order, the workers, the database, and what is killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import list_users
from polarcredits.webhooks.fixtures import Story
from polarcredits.webhooks.inbox import Inbox
from polarcredits.webhooks.reading import StoredDelivery
from tests.ledger.test_convergence import Outcome, outcome
from tests.server.conftest import sqlite
from tests.server.serving import PRO, Serving, opened, serving
from tests.server.wire import Sending, Sent, flood, recordings, told


def all_outcomes(ledger: Ledger, now: datetime) -> dict[str, Outcome]:
    """Return plan, balance and grants of everybody, after the laws were checked."""
    assert verify(ledger).problems == []
    return {each.id: outcome(ledger, each.id, now) for each in list_users(ledger, plan=None, limit=10_000)}


def ingested(folder: Path, sendings: list[Sending], now: datetime) -> dict[str, Outcome]:
    """Return what `webhooks ingest` makes of the same deliveries, in their order."""
    folder.mkdir()
    with opened(sqlite(folder)) as ledger:
        inbox = Inbox(ledger, environment="sandbox", secrets=[each.secret for each in sendings[:1]])
        for each in sendings:
            element = StoredDelivery(where="test", headers=each.headers(), raw=each.raw)
            assert inbox.ingest(element, now=now).status in ("applied", "ignored")
        return all_outcomes(ledger, now)


def purchases(users: int) -> list[Sending]:
    """Return the events of some users who buy."""
    now = datetime.now(UTC) - timedelta(minutes=1)
    return [
        told(f"evt-{user}-{number}", payload)
        for user in range(users)
        for number, payload in enumerate(Story(f"user-{user}", at=now).purchase(PRO))
    ]


def stored(url: str) -> set[str]:
    """Return the ids of all stored events."""
    with opened(url) as ledger:
        return {row.id for row in Inbox(ledger, environment="sandbox", secrets=[]).list(limit=None)}


@pytest.mark.parametrize("workers", [1, 4])
def test_every_recording_is_taken_once(url: str, workers: int, tmp_path: Path) -> None:
    """Each delivery comes three times, in a random order, from 64 connections at once."""
    sendings = recordings()
    mixed = sendings * 3
    random.Random(workers).shuffle(mixed)
    with serving(tmp_path / "run", url, options=["--workers", str(workers)]) as server:
        sent = asyncio.run(flood(server.port, mixed))
        assert server.stop() == 0
    assert Counter(each.answer and each.answer.status for each in sent) == {202: len(mixed)}
    first = [each.sending.id for each in sent if each.answer and each.answer.json["status"] != "duplicate"]
    assert sorted(first) == sorted(each.id for each in sendings)
    now = datetime.now(UTC)
    with opened(url) as ledger:
        assert all_outcomes(ledger, now) == ingested(tmp_path / "again", sendings, now)


@pytest.mark.parametrize("whole", [False, True], ids=["worker", "server"])
def test_nothing_acknowledged_is_lost_when_killed(url: str, whole: bool, tmp_path: Path) -> None:
    """kill -9 under load: what got its 202 is stored, and the rest is taken when it is sent again."""
    sendings = purchases(25)
    luck = random.Random(whole)
    luck.shuffle(sendings)
    taken: set[str] = set()
    folder, options = tmp_path / "run", ["--workers", "2"]

    def under_fire(server: Serving, kill_at: int) -> list[int]:
        answers: list[int] = []

        def note(sent: Sent) -> None:
            if sent.answer is None:
                return
            answers.append(sent.answer.status)
            taken.add(sent.sending.id)
            if len(answers) == kill_at:
                server.kill() if whole else os.kill(luck.choice(server.workers(2)), signal.SIGKILL)

        asyncio.run(flood(server.port, sendings, seen=note))
        return answers

    with serving(folder, url, options=options) as server:
        assert set(under_fire(server, 40)) == {202}
        assert whole or server.get("/healthz")[0] == 200
    assert taken
    assert taken <= stored(url)
    if whole:
        assert len(taken) < len(sendings)
    with serving(folder, url, options=options) as server:
        sent = asyncio.run(flood(server.port, sendings))
    assert {each.answer and each.answer.status for each in sent} == {202}
    now = datetime.now(UTC)
    with opened(url) as ledger:
        assert all_outcomes(ledger, now) == ingested(tmp_path / "again", sendings, now)
