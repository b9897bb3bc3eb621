"""What goes on beside the requests: the log's own thread, and work that is kept up."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from polarcredits.server.app import kept_up
from polarcredits.server.log import JsonLog


def lines(path: Path) -> list[dict[str, Any]]:
    """Return what was logged."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_log_goes_on_after_an_error(tmp_path: Path) -> None:
    """Lines that could not be written are counted, and told of with the first that can be again."""
    read, write = os.pipe()
    os.close(read)
    log = JsonLog(write)
    for number in range(3):
        log.write("lost", number=number)
    until = time.monotonic() + 5
    while log.dropped < 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert log.dropped == 3
    with (tmp_path / "log").open("wb") as found:
        os.dup2(found.fileno(), write)
    log.write("written")
    log.write("written")
    log.close()
    os.close(write)
    told = [(line["event"], line.get("lines")) for line in lines(tmp_path / "log")]
    assert told == [("written", None), ("log_lines_dropped", 3), ("written", None)]
    assert log.dropped == 3


def test_work_that_fails_is_told_of_and_begun_again(tmp_path: Path) -> None:
    """Its error's kind and place, never its text; until it is cancelled, which ends what runs too."""
    begun = 0
    ended = asyncio.Event()

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise KeyError("a payload's text")
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.set()

    async def trial(log: JsonLog) -> None:
        task = asyncio.create_task(kept_up(work, log=log, pause=0.01))
        async with asyncio.timeout(5):
            while begun < 3:
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    with (tmp_path / "log").open("wb") as file:
        log = JsonLog(file.fileno())
        asyncio.run(trial(log))
        log.close()
    failed = lines(tmp_path / "log")
    assert [(line["event"], line["level"], line["error"]) for line in failed] == [
        ("beside_failed", "error", "KeyError")
    ] * 2
    assert "test_beside.py" in failed[0]["at"][-1]
    assert "payload" not in (tmp_path / "log").read_text()
