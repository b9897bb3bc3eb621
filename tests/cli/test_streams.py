"""Standard streams that are closed, full or without a reader: the work is done, the exit code says how."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CLI = f"{sys.executable} -c 'from polarcredits.cli import main; main()'"
FULL = "No space left on device. What was done stays done."
pytestmark = pytest.mark.usefixtures("database")


def shell(arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a shell does, with its redirections."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{CLI} {arguments}"], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_talk_that_nobody_hears_changes_nothing(stderr: str) -> None:
    """An error has its exit code and nothing on stdout, where stderr is closed or takes no line."""
    done = shell(f"credits show nobody {stderr}")
    assert (done.returncode, done.stdout) == (3, "")
    assert (shell(f"credits frobnicate {stderr}")).returncode == 2


def test_a_closed_stdout_is_no_failure(database: Path) -> None:
    """Nobody wants the answer: done all the same, and said so by the exit code."""
    done = shell("users add alice >&- <&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads(shell("credits show alice --json").stdout)["balance"] == 1000


def test_the_null_device_stands_where_a_stream_was() -> None:
    """Else the next file that is opened were stderr, and what is logged were written to it."""
    program = "; ".join(
        (
            "import atexit, os, sys",
            "from polarcredits.cli import main",
            'atexit.register(lambda: print(*(os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 2))))',
            'main(["--version"])',
        )
    )
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{program}' 2>&- <&-"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[1] == "/dev/null /dev/null"


@pytest.mark.parametrize("command", ["--version", "plans", "plans --json", "--help", "plans --help --json"])
def test_an_answer_that_cannot_be_written(command: str) -> None:
    """One line that says why, and no traceback."""
    done = shell(f"{command} >/dev/full")
    assert (done.returncode, done.stderr) == (1, f"Error: The answer cannot be written: {FULL}\n")


def test_an_answer_that_cannot_be_written_undoes_nothing() -> None:
    """A deduction is there though its receipt found no room; neither is an error's document a bug."""
    shell("users add alice")
    assert shell("credits deduct alice 10 --json >/dev/full").returncode == 1
    assert shell("credits show nobody --json >/dev/full").stderr.endswith(f"{FULL}\n")
    assert json.loads(shell("credits show alice --json").stdout)["balance"] == 990


def test_a_reader_that_goes_away_is_no_error() -> None:
    """Half of an answer is what `head` asked for."""
    done = shell("plans | true")
    assert (done.returncode, done.stderr) in ((1, ""), (0, ""))


def test_a_stdout_of_few_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON stays JSON, and people read what can be shown and the numbers of the rest."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = shell("users add josé --json")
    assert json.loads(done.stdout)["id"] == "josé"
    assert "jos\\xe9" in shell("users show josé").stdout
