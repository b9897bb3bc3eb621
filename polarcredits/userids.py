"""User ids: what the application calls its users, and what we call those it has not named yet."""

from __future__ import annotations

from polarcredits.errors import InvalidInput

LONGEST_ID = 255
PLACEHOLDER = "polar:"
"""Begins the id of the account of a Polar customer whose user is not known (docs/rules.md §7.1)."""


def check_user_id(user: str) -> str:
    """Return *user* if it can be a user id, else raise InvalidInput."""
    if not isinstance(user, str):
        raise InvalidInput(f"The user id must be a text, not {user!r}.")
    if not user or user != user.strip() or not user.isprintable() or len(user) > LONGEST_ID:
        raise InvalidInput(
            f"{user[:40]!r} cannot be a user id: use 1 to {LONGEST_ID} printable characters "
            "without blanks at the ends.",
            user=user[:LONGEST_ID],
        )
    return user


def check_new_user(user: str) -> str:
    """Return *user* if an account can be made by that name, else raise InvalidInput."""
    if check_user_id(user).startswith(PLACEHOLDER):
        raise InvalidInput(f"User ids that begin with {PLACEHOLDER} are kept for Polar's customers.")
    return user
