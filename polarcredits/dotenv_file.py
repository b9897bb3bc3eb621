"""Secrets in the `.env` file where the settings find them, for its owner alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

from polarcredits.errors import ConfigError

_PLAIN = re.compile(r"[A-Za-z0-9_.,:/+=@%-]*")


def dotenv_path(folder: Path, config: Path | None) -> Path:
    """Return the `.env` of the working *folder* if there is one, else the one beside the *config* file."""
    here = folder / ".env"
    return config.parent / ".env" if config is not None and not here.is_file() else here


def read(path: Path) -> dict[str, str]:
    """Return what the file sets, as it stands there: nothing is filled in for `${…}`.

    Raises ConfigError where it cannot be read.
    """
    from dotenv import dotenv_values

    try:
        found = dotenv_values(path, interpolate=False, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return {key: text for key, text in found.items() if text}


def save(path: Path, name: str, value: str, *, keep: bool = False) -> None:
    """Set *name* in the file, mode 0600; with *keep*, before the values that are there already.

    Raises ConfigError where it cannot be written, or would not be read again as it is.
    """
    from dotenv import set_key

    check_secret(name, value)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        path.chmod(0o600)
        before = read(path).get(name, "") if keep else ""
        kept = [each.strip() for each in before.split(",") if each.strip()]
        if value not in kept:
            set_key(path, name, _quoted(",".join((value, *kept))), quote_mode="never", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}", setting=name) from error


def check_secret(name: str, value: str) -> None:
    """Raise ConfigError for a value that a setting cannot hold: a comma separates several."""
    if not value or "," in value or value != value.strip() or not value.isprintable():
        raise ConfigError(
            f"{name} cannot hold this value: it may have no comma, no blanks at its ends and nothing "
            "unprintable. Give it another one in Polar's settings.",
            setting=name,
        )


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
