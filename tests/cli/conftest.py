"""An empty folder with the settings of the recordings, and a way to run commands in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from polarcredits.cli import main
from tests.stand_in.server import TOKEN, PolarStandIn
from tests.webhooks.recordings import SECRET

PRO = "e5e52250-8ea2-4e30-b1ae-60bd1c83e7b6"
Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the settings of the recordings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLARCREDITS_DATABASE_URL", f"sqlite:///{tmp_path / 'credits.db'}")
    monkeypatch.setenv("POLAR_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("POLAR_PRO_PRODUCT_ID", PRO)
    monkeypatch.delenv("POLAR_ENVIRONMENT", raising=False)
    return tmp_path / "credits.db"


@pytest.fixture
def run(database: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with --json; return its exit code and document."""

    def run(*arguments: str) -> tuple[int, Any]:
        with pytest.raises(SystemExit) as ended:
            main([*arguments[:1], "--json", *arguments[1:]])
        code = ended.value.code
        assert isinstance(code, int)
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def polar(database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PolarStandIn]:
    """A server that stands in for Polar, and the settings that lead to it."""
    monkeypatch.setenv("POLAR_ACCESS_TOKEN", TOKEN)
    with PolarStandIn() as server:
        monkeypatch.setenv("POLAR_BASE_URL", server.url)
        server.state.add_product("Pro", id=PRO)
        yield server
