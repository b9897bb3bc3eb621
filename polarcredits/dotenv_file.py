"""Secrets in the `.env` file where the settings find them, for its owner alone."""

from __future__ import annotations

import os
from pathlib import Path

from polarcredits.errors import ConfigError


def dotenv_path(folder: Path, config: Path | None) -> Path:
    """Return the `.env` of the working *folder* if there is one, else the one beside the *config* file."""
    here = folder / ".env"
    return config.parent / ".env" if config is not None and not here.is_file() else here


def save(path: Path, name: str, value: str, *, keep: bool = False) -> None:
    """Set *name* in the file, mode 0600; with *keep*, before the values that are there already.

    Raises ConfigError where it cannot be written.
    """
    from dotenv import dotenv_values, set_key

    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        path.chmod(0o600)
        before = (dotenv_values(path).get(name) or "") if keep else ""
        kept = [each.strip() for each in before.split(",") if each.strip()]
        if value not in kept:
            set_key(path, name, ",".join((value, *kept)), quote_mode="never")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be written: {error}", setting=name) from error
