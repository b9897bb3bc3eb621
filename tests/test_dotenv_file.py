"""Secrets in `.env`: what is saved is what is read, whatever it looks like."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polarcredits.dotenv_file import check_secret, read, save
from polarcredits.errors import ConfigError
from polarcredits.settings import load_settings

NAME = "POLAR_WEBHOOK_SECRET"
TEXTS = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" '\"\\#$={}`"), min_size=1)
SECRETS = TEXTS.filter(lambda text: "," not in text and text == text.strip())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(old=SECRETS, new=SECRETS)
def test_what_is_saved_is_read(old: str, new: str, tmp_path: Path) -> None:
    """One after the other: the newer first, other lines as they were."""
    path = tmp_path / ".env"
    path.write_text("BEFORE='a b'\n", "utf-8")
    save(path, NAME, old, keep=True)
    save(path, NAME, new, keep=True)
    kept = list(dict.fromkeys([new, old] if new != old else [old]))
    found = load_settings(environ={"XDG_CONFIG_HOME": str(tmp_path)}, cwd=tmp_path)
    assert [secret.reveal() for secret in found.webhook_secrets] == kept
    assert read(path)["BEFORE"] == "a b"
    assert path.read_text("utf-8").startswith("BEFORE='a b'\n")


def test_nothing_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dollar sign is one."""
    monkeypatch.setenv("OTHER", "else")
    (tmp_path / ".env").write_text("POLAR_ACCESS_TOKEN=a${OTHER}b\n")
    token = load_settings(environ={}, cwd=tmp_path).access_token
    assert token is not None
    assert token.reveal() == "a${OTHER}b"


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    """Also where the secret was there already."""
    path = tmp_path / ".env"
    path.write_text(f"{NAME}=one\n")
    path.chmod(0o644)
    save(path, NAME, "one", keep=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == f"{NAME}=one\n"


@pytest.mark.parametrize("value", ["", "a,b", " a", "a\n", "a\x00b"])
def test_what_no_setting_holds(value: str, tmp_path: Path) -> None:
    """It is refused, and no file is made."""
    with pytest.raises(ConfigError):
        check_secret(NAME, value)
    with pytest.raises(ConfigError):
        save(tmp_path / ".env", NAME, value)
    assert list(tmp_path.iterdir()) == []
