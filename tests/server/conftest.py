"""Databases and servers for the tests of the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from polarcredits.ledger import schema
from tests.ledger.conftest import copy_of_template, postgres
from tests.server.serving import Serving, serving

__all__ = ["postgres"]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty, migrated database."""
    if request.param == "postgresql":
        return copy_of_template(request.getfixturevalue("postgres"))
    return sqlite(tmp_path)


def sqlite(folder: Path) -> str:
    """Return the URL of an empty, migrated SQLite database."""
    made = f"sqlite:///{folder / 'credits.db'}"
    schema.make_if_absent(made)
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server on SQLite that the tests of a module share; it takes nothing made up."""
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, sqlite(folder)) as running:
        yield running
