"""The README's commands exist, and its console blocks run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(console|bash)\n(.*?)```", README, re.DOTALL)


def _run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "POLARCREDITS_DATABASE_URL": f"sqlite:///{folder / 'readme.db'}",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    return subprocess.run(
        [sys.executable, "-m", "polarcredits", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_console_blocks_run(tmp_path: Path) -> None:
    """Each command of a console block ends well, and prints what the README shows."""
    ran = 0
    for kind, block in BLOCKS:
        if kind != "console":
            continue
        shown: list[str] = []
        output = ""
        for line in block.splitlines():
            if line.startswith("$ "):
                done = _run(shlex.split(line.removeprefix("$ polarcredits")), tmp_path)
                assert done.returncode == 0, (line, done.stderr)
                output, ran = done.stdout, ran + 1
            elif line.strip():
                shown.append(line)
                assert line.strip() in output
    assert ran


@pytest.mark.parametrize(
    "command",
    sorted(
        {
            line.strip().removeprefix("$ ")
            for _, block in BLOCKS
            for line in block.splitlines()
            if line.strip().removeprefix("$ ").startswith("polarcredits ")
        }
    ),
)
def test_commands_exist_with_their_options(command: str, tmp_path: Path) -> None:
    """Every command and option that a block names is in that command's help."""
    words = shlex.split(command)[1:]
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    path: list[str] = []
    for word in words:
        if not re.fullmatch(r"[a-z-]+", word) or len(path) == 2:
            break
        path.append(word)
    while True:
        helped = _run([*path, "--help"], tmp_path)
        if helped.returncode == 0 and helped.stdout:
            break
        path.pop()
        assert path, f"no such command: {command}"
    for option in options:
        assert option in (*helped.stdout.split(), "--json"), f"{option} of {command}"


def test_the_first_lines_are_whole_commands() -> None:
    """The first lines that name the demo and the tests set everything up."""
    for word in ("polarcredits demo", "pytest"):
        first = next(line for line in README.splitlines() if word in line)
        assert first.startswith("python3 -m venv .venv && .venv/bin/pip install"), first
