"""Settings: where they are looked for, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from polarcredits.errors import ConfigError
from polarcredits.settings import load_settings


def test_the_environment_alone_is_enough(tmp_path: Path) -> None:
    """No file anywhere."""
    settings = load_settings(
        environ={"POLAR_WEBHOOK_SECRET": " one , two ", "POLAR_PRO_PRODUCT_ID": "p", "XDG_CONFIG_HOME": "x"},
        cwd=tmp_path,
    )
    assert [secret.reveal() for secret in settings.webhook_secrets] == ["one", "two"]
    assert settings.environment == "sandbox"
    assert settings.database_url.startswith("sqlite:///")
    assert settings.catalog.plan("pro").product_ids == ("p",)


def test_secrets_never_show(tmp_path: Path) -> None:
    """Neither in repr nor in str."""
    environ = {"POLAR_ACCESS_TOKEN": "tok-123", "POLAR_WEBHOOK_SECRET": "sec-123"}
    settings = load_settings(environ=environ, cwd=tmp_path)
    assert "123" not in f"{settings!r} {settings} {settings.access_token} {settings.webhook_secrets}"


def test_the_real_environment_wins_over_dotenv(tmp_path: Path) -> None:
    """And `.env` beside the TOML is read where the working directory has none."""
    (tmp_path / ".env").write_text("POLAR_ENVIRONMENT=production\nPOLAR_PRO_PRODUCT_ID=p\n")
    assert load_settings(environ={}, cwd=tmp_path).environment == "production"
    assert load_settings(environ={"POLAR_ENVIRONMENT": "sandbox"}, cwd=tmp_path).environment == "sandbox"
    other = tmp_path / "elsewhere"
    other.mkdir()
    (tmp_path / "mine.toml").write_text("")
    settings = load_settings(environ={}, cwd=other, config=tmp_path / "mine.toml")
    assert (settings.environment, settings.config_path) == ("production", tmp_path / "mine.toml")


def test_a_home_that_may_not_be_looked_into_has_no_file() -> None:
    """Under systemd's ProtectHome the user's own folder cannot even be asked for."""
    program = (
        "import os, sys, platformdirs.unix; from pathlib import Path\n"
        "from polarcredits.settings import load_settings\n"
        "os.geteuid() == 0 and os.setuid(65534)\n"
        "os.environ['XDG_CONFIG_HOME'] = sys.argv[1]\n"
        "print(load_settings(environ={}, cwd=Path(sys.argv[2])).config_path)"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        closed = Path(folder, "home")
        closed.mkdir(mode=0o000)
        found = subprocess.run(
            [sys.executable, "-c", program, closed, folder], capture_output=True, text=True, check=False
        )
    assert (found.stdout, found.stderr) == ("None\n", "")


def test_where_the_file_is_looked_for(tmp_path: Path) -> None:
    """--config, then POLARCREDITS_CONFIG, then the working directory."""
    for name, credits in (("a.toml", 1), ("b.toml", 2), ("polarcredits.toml", 3)):
        (tmp_path / name).write_text(f'[plans.pro]\ncredits = {credits}\ninterval = "month"\n')

    def pro(**given: str) -> int:
        settings = load_settings(
            environ={"POLARCREDITS_CONFIG": given["env"]} if "env" in given else {},
            cwd=tmp_path,
            config=Path(given["config"]) if "config" in given else None,
        )
        return settings.catalog.plan("pro").credits

    a, b = str(tmp_path / "a.toml"), str(tmp_path / "b.toml")
    assert (pro(config=a, env=b), pro(env=b), pro()) == (1, 2, 3)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"POLAR_ENVIRONMENT": "staging"}, "POLAR_ENVIRONMENT"),
        ({"POLARCREDITS_CONFIG": "no-such.toml"}, "no-such.toml"),
        ({"POLARCREDITS_PUBLIC_URL": "https://example.com/a b"}, "POLARCREDITS_PUBLIC_URL"),
        ({"POLARCREDITS_PUBLIC_URL": 'https://example.com/"'}, "POLARCREDITS_PUBLIC_URL"),
        ({"POLARCREDITS_PUBLIC_URL": "https://example.com/<x>"}, "POLARCREDITS_PUBLIC_URL"),
        ({"POLARCREDITS_DATABASE_URL": "mysql://u:pa55@h/d"}, "POLARCREDITS_DATABASE_URL"),
    ],
)
def test_wrong_settings_name_themselves(environ: dict[str, str], message: str, tmp_path: Path) -> None:
    """And never show a password."""
    with pytest.raises(ConfigError, match=message) as refused:
        load_settings(environ=environ, cwd=tmp_path)
    assert "pa55" not in refused.value.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A folder in place of a file, and bytes that are no text."""
    (tmp_path / "polarcredits.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(environ={}, cwd=tmp_path)
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_settings(environ={}, cwd=tmp_path, config=tmp_path / "x.toml")
