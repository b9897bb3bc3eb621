"""Workers that fail, and a supervisor that watches: what is told, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.server.conftest import sqlite
from tests.server.serving import serving
from tests.server.wire import post, told

EVENT = {"type": "x", "timestamp": "2026-01-01T00:00:00Z"}
SUPERVISED = """
import os, signal, socket, sys, time
from polarcredits.server.supervisor import Supervisor
{before}
def work(alive):
    print("worked", flush=True)
    {then}
with socket.socket() as listening:
    gone = lambda pid: os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(Supervisor(work, workers=1, listening=listening, gone=gone).run())
"""
FAILS = 'raise RuntimeError("a payload\'s text")'
STARTS_SLOWLY = 'os.kill(os.getppid(), signal.SIGTERM); time.sleep(5); print("still there", flush=True)'
STOPPED = "os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))"


def supervised(before: str, then: str = FAILS) -> subprocess.CompletedProcess[str]:
    """Run a supervisor of one worker until that has ended."""
    script = SUPERVISED.replace("{before}", before).replace("{then}", then)
    return subprocess.run([sys.executable, "-c", script], timeout=20, capture_output=True, text=True)


def test_a_worker_that_fails_leaves_a_reason() -> None:
    """The error's kind and place are logged, never its text, and the stop that follows is clean."""
    ran = supervised("")
    assert (ran.returncode, ran.stdout) == (0, "worked\n")
    (line,) = [json.loads(each) for each in ran.stderr.splitlines()]
    assert (line["event"], line["error"], line["at"][-1]) == (
        "worker_failed",
        "RuntimeError",
        "<string>:7 work",
    )


def test_a_worker_is_stopped_while_it_is_forked() -> None:
    """A SIGTERM that comes before the worker listens to it is not lost: it does not even begin."""
    ran = supervised(STOPPED)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_a_worker_is_stopped_while_it_starts() -> None:
    """A SIGTERM that comes before the server in it listens to signals ends it at once."""
    ran = supervised("", STARTS_SLOWLY)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "worked\n", "")


def test_figures_outlive_whoever_cleans_temporary_folders(tmp_path: Path) -> None:
    """The folder that workers share is made again: metrics answer, and a dead worker is replaced."""
    here = tmp_path / "temporary"
    here.mkdir()
    how = {"options": ["--workers", "2"], "environ": {"TMPDIR": str(here)}}
    with serving(tmp_path / "run", sqlite(tmp_path), **how) as server:
        before = server.workers(2)
        (folder,) = here.iterdir()
        assert folder.stat().st_mode & 0o077 == 0
        shutil.rmtree(folder)
        assert server.get("/metrics")[0] == 200
        assert folder.stat().st_mode & 0o077 == 0
        shutil.rmtree(folder)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        server.workers(4)
        server.ready()
        assert post(server.port, told("after", EVENT)).status == 202
        text = server.get("/metrics")[1]
        assert 'polarcredits_deliveries_total{outcome="ignored",type="other"} 1.0' in text
        assert server.stop() == 0
    assert list(here.iterdir()) == []


def test_a_supervisor_that_is_killed_leaves_no_folder(tmp_path: Path) -> None:
    """Its workers end by themselves, and remove what they shared."""
    here = tmp_path / "temporary"
    here.mkdir()
    how = {"options": ["--workers", "2"], "environ": {"TMPDIR": str(here)}}
    with serving(tmp_path / "run", sqlite(tmp_path), **how) as server:
        server.workers(2)
        assert len(list(here.iterdir())) == 1
        os.kill(server.process.pid, signal.SIGKILL)
        until = time.monotonic() + 20
        while [each["event"] for each in server.lines()].count("worker_stopped") < 2 or list(here.iterdir()):
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_under_nohup_a_server_outlives_its_terminal(workers: str, tmp_path: Path) -> None:
    """SIGHUP stops it, unless whoever started it had that ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with serving(tmp_path / "run", sqlite(tmp_path), options=["--workers", workers]) as server:
            os.killpg(server.process.pid, signal.SIGHUP)
            time.sleep(0.5)
            assert post(server.port, told("after", EVENT)).status == 202
            assert [line for line in server.lines() if line["event"] == "worker_stopped"] == []
            assert server.stop() == 0
    finally:
        signal.signal(signal.SIGHUP, before)
