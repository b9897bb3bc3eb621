"""Start-up: help lines are known without the commands' modules, and are those of the commands."""

from __future__ import annotations

import subprocess
import sys

import pytest

from polarcredits.cli.lazy import COMMANDS, load

HEAVY = {"alembic", "httpx", "polar", "psycopg", "pydantic", "rich", "sqlalchemy", "sqlmodel"}
PROBE = """
import atexit, sys
atexit.register(lambda: print(*sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr))
sys.argv = ["polarcredits", *sys.argv[1:]]
from polarcredits.cli import main
main()
"""


def loaded(*arguments: str) -> set[str]:
    """Return the packages that a command of its own process has imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_is_that_of_the_command(name: str) -> None:
    """What `--help` says of a command is what the command says of itself."""
    command = load(name)
    assert command.name == name
    assert command.get_short_help_str(80) == COMMANDS[name][1]


def test_the_version_imports_no_command_line_at_all() -> None:
    """Not even Typer; with --json too."""
    for arguments in (["--version"], ["--version", "--json"]):
        assert not loaded(*arguments) & (HEAVY | {"typer"})


def test_help_imports_no_heavy_package() -> None:
    """The help of everything needs the lines alone."""
    assert not loaded("--help") & HEAVY


def test_a_command_imports_what_it_needs() -> None:
    """Help of one command: no database, no Polar."""
    assert not loaded("credits", "show", "--help") & (HEAVY - {"pydantic"})
