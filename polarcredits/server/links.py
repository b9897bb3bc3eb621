"""Signed links: they name a user or an offer until a time, and nobody else can make them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from itsdangerous import BadData, URLSafeSerializer

from polarcredits.errors import ConfigError, InvalidInput
from polarcredits.settings import Settings

SHORTEST_KEY = 32
_VARIETY = 8
_LONGEST = 4096
"""Characters of a token: a user id of 255 characters of any script fits."""
MAKE_KEY = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"


class LinkRefused(InvalidInput):
    """A token that was not signed with our key, or says nothing that we understand."""


class LinkExpired(LinkRefused):
    """A token of ours whose time is over."""


@dataclass(frozen=True, slots=True)
class Named:
    """A user, named by a signed link until a time."""

    user: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """What a button sells, to whom (None: nobody named), until when."""

    kind: str
    name: str
    user: str | None
    expires_at: datetime


class Links:
    """Makes and reads tokens. The first key signs, the others are still accepted while rotating."""

    def __init__(self, keys: Sequence[str]) -> None:
        oldest_first = list(reversed(keys))
        self._users = _serializer(oldest_first, "polarcredits.user")
        self._offers = _serializer(oldest_first, "polarcredits.offer")

    def user(self, user: str, expires_at: datetime) -> str:
        """Return a token that names *user* until a time (whole seconds count)."""
        return str(self._users.dumps([user, int(expires_at.timestamp())]))

    def read_user(self, token: str, now: datetime) -> Named:
        """Return whom a token names. Raises LinkExpired and LinkRefused."""
        match _load(self._users, token):
            case [str(user), int(seconds)]:
                return Named(user, _still_valid(seconds, now))
        raise LinkRefused("The link names no user.")

    def offer(self, offered: Offered) -> str:
        """Return a token for a form: what its button sells cannot be changed on the way."""
        seconds = int(offered.expires_at.timestamp())
        return str(self._offers.dumps([offered.kind, offered.name, offered.user, seconds]))

    def read_offer(self, token: str, now: datetime) -> Offered:
        """Return what a form's token offers. Raises LinkExpired and LinkRefused."""
        match _load(self._offers, token):
            case [str(kind), str(name), str() | None as user, int(seconds)]:
                return Offered(kind=kind, name=name, user=user, expires_at=_still_valid(seconds, now))
        raise LinkRefused("The form offers nothing.")


def links_of(settings: Settings) -> Links | None:
    """Return the links that the settings' keys sign; None without a key. Raises ConfigError."""
    if settings.secret_key is None:
        return None
    keys = [key.strip() for key in settings.secret_key.reveal().split(",") if key.strip()]
    if not keys or any(len(key) < SHORTEST_KEY or len(set(key)) < _VARIETY for key in keys):
        raise ConfigError(
            f"POLARCREDITS_SECRET_KEY is too weak: a key has {SHORTEST_KEY} random characters or more. "
            f"Make one with: {MAKE_KEY}",
            setting="POLARCREDITS_SECRET_KEY",
        )
    return Links(keys)


def personal_urls(settings: Settings, user: str, expires_at: datetime) -> tuple[str, str]:
    """Return the signed addresses of a user's billing and pricing pages. Raises ConfigError."""
    links = links_of(settings)
    if links is None:
        raise ConfigError(
            "POLARCREDITS_SECRET_KEY is not set: neither in the environment nor in a .env file. "
            f"Make one with: {MAKE_KEY}",
            setting="POLARCREDITS_SECRET_KEY",
        )
    if settings.public_url is None:
        raise ConfigError(
            "POLARCREDITS_PUBLIC_URL is not set: neither in the environment nor in a .env file. It is the "
            "address at which buyers reach serve-webhooks, such as https://credits.example.com.",
            setting="POLARCREDITS_PUBLIC_URL",
        )
    token = links.user(user, expires_at)
    return f"{settings.public_url}/billing/{token}", f"{settings.public_url}/pricing?user={token}"


def what_is_off(settings: Settings) -> list[str]:
    """Return, for whoever starts the server, which pages are off and why."""
    told = []
    if settings.secret_key is None:
        told.append(
            "POLARCREDITS_SECRET_KEY is not set: the billing and success pages and the buy buttons are off. "
            f"Make a key with: {MAKE_KEY}"
        )
    if settings.access_token is None:
        told.append("POLAR_ACCESS_TOKEN is not set: the pages show no prices and sell nothing.")
    if settings.public_url is None:
        told.append("POLARCREDITS_PUBLIC_URL is not set: buyers end on Polar's own page, not on ours.")
    return told


def _serializer(keys: list[str], salt: str) -> URLSafeSerializer:
    how = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
    return URLSafeSerializer(keys, salt=salt, signer_kwargs=how)


def _load(serializer: URLSafeSerializer, token: str) -> object:
    if len(token) > _LONGEST:
        raise LinkRefused("The link is too long to be ours.")
    try:
        return serializer.loads(token)
    except BadData:
        raise LinkRefused("The link is not signed by us.") from None


def _still_valid(seconds: int, now: datetime) -> datetime:
    expires_at = datetime.fromtimestamp(seconds, UTC)
    if now >= expires_at:
        raise LinkExpired("The link has expired.")
    return expires_at
