"""Settings: environment, `.env` and `polarcredits.toml` become one frozen value."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from polarcredits import dotenv_file
from polarcredits.errors import ConfigError
from polarcredits.plans import Catalog, parse_catalog

FILE = "polarcredits.toml"
ENVIRONMENTS = ("sandbox", "production")


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A value that no repr, log or traceback shows."""

    _value: str

    def reveal(self) -> str:
        """Return the secret itself, for the one call that needs it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be configured."""

    access_token: Secret | None
    webhook_secrets: tuple[Secret, ...]
    pro_product_id: str | None
    environment: str
    base_url: str | None
    database_url: str
    secret_key: Secret | None
    public_url: str | None
    catalog: Catalog
    config_path: Path | None


def load_settings(
    *,
    config: Path | None = None,
    database: str | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    may_lack_file: bool = False,
) -> Settings:
    """Read the settings; ConfigError names what is wrong and where it was looked for.

    With *may_lack_file*, the configuration file that is named may yet have to be made.
    """
    here = cwd or Path.cwd()
    real = os.environ if environ is None else environ
    path = named_config(config=config, environ=real, cwd=here)
    if path is not None and not path.exists():
        if not may_lack_file:
            raise ConfigError(
                f"{'--config' if config else 'POLARCREDITS_CONFIG'}: there is no file {path}.",
                setting="--config" if config else "POLARCREDITS_CONFIG",
            )
        path = None
    path = path or _usual_config(here)
    values = {**_dotenv(here, path), **{key: text for key, text in real.items() if text.strip()}}

    def value(name: str) -> str | None:
        return values.get(name, "").strip() or None

    def secret(name: str) -> Secret | None:
        text = value(name)
        return Secret(text) if text else None

    environment = value("POLAR_ENVIRONMENT") or "sandbox"
    if environment not in ENVIRONMENTS:
        raise ConfigError(
            f"POLAR_ENVIRONMENT is {environment!r}; it must be sandbox or production.",
            setting="POLAR_ENVIRONMENT",
        )
    product = value("POLAR_PRO_PRODUCT_ID")
    secrets = (value("POLAR_WEBHOOK_SECRET") or "").split(",")
    return Settings(
        access_token=secret("POLAR_ACCESS_TOKEN"),
        webhook_secrets=tuple(Secret(text.strip()) for text in secrets if text.strip()),
        pro_product_id=product,
        environment=environment,
        base_url=value("POLAR_BASE_URL"),
        database_url=_database_url(database or value("POLARCREDITS_DATABASE_URL")),
        secret_key=secret("POLARCREDITS_SECRET_KEY"),
        public_url=_public_url(value("POLARCREDITS_PUBLIC_URL")),
        catalog=parse_catalog(
            _text(path) if path else None,
            pro_product_id=product,
            where=str(path) if path else FILE,
        ),
        config_path=path,
    )


_UNFIT = re.compile(r"[^!#-;=?-~]")
"""What an address must not have as it is: spaces, quotes, angle brackets, what is not ASCII."""


def _public_url(given: str | None) -> str | None:
    """Return where the pages are reached, without a slash at the end."""
    if given is None:
        return None
    try:
        parts = urlsplit(given)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or parts.username or _UNFIT.search(given):
        raise ConfigError(
            f"POLARCREDITS_PUBLIC_URL {given!r} is no address such as https://example.com.",
            setting="POLARCREDITS_PUBLIC_URL",
        )
    return given.rstrip("/")


def named_config(
    *, config: Path | None = None, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Path | None:
    """Return the file that `--config` or POLARCREDITS_CONFIG names, whether it is there or not."""
    if config is not None:
        return config
    real = os.environ if environ is None else environ
    name = real.get("POLARCREDITS_CONFIG", "").strip()
    name = name or _dotenv(cwd or Path.cwd(), None).get("POLARCREDITS_CONFIG", "").strip()
    return Path(name) if name else None


def _usual_config(here: Path) -> Path | None:
    if (here / FILE).exists():
        return here / FILE
    import platformdirs

    own = Path(platformdirs.user_config_dir("polarcredits")) / FILE
    try:
        return own if own.exists() else None
    except PermissionError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text.", path=str(path)) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", path=str(path)) from error


def _dotenv(here: Path, config: Path | None) -> dict[str, str]:
    for folder in (here, config.parent if config else here):
        if (folder / ".env").is_file():
            return dotenv_file.read(folder / ".env")
    return {}


def _database_url(given: str | None) -> str:
    if given is None:
        import platformdirs

        folder = Path(platformdirs.user_data_dir("polarcredits"))
        return f"sqlite:///{folder / 'polarcredits.db'}"
    if given.startswith("postgres://"):
        given = "postgresql://" + given.removeprefix("postgres://")
    memory = given in ("sqlite://", "sqlite:///", "sqlite:///:memory:")
    if given.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://")) and not memory:
        return given
    scheme = given.split(":", 1)[0] if "://" in given else "no scheme"
    raise ConfigError(
        f"The database URL ({scheme}) must begin with sqlite:///FILE or postgresql://; "
        "it is taken from --database or POLARCREDITS_DATABASE_URL.",
        setting="POLARCREDITS_DATABASE_URL",
    )
