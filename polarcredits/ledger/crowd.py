"""The accounts that a batch touches: found and locked together, and kept in memory."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import BindParameter, Connection, bindparam, select

from polarcredits.ledger import tables as t
from polarcredits.ledger.account import Call, LoadedAccount
from polarcredits.ledger.identity import lifetime, put_account
from polarcredits.ledger.keeping import load_all, new_account
from polarcredits.plans import Catalog

_USERS: BindParameter[list[str]] = bindparam("users", expanding=True)
_NAMED = select(t.accounts.c.user_id, t.accounts.c.id, t.accounts.c.alias_of).where(
    t.accounts.c.user_id.in_(_USERS)
)


class Crowd:
    """Accounts by user id, each loaded once."""

    def __init__(self, connection: Connection, catalog: Catalog) -> None:
        self._connection = connection
        self._catalog = catalog
        self._named: dict[str, tuple[int, int] | None] = {}
        self._loaded: dict[int, LoadedAccount] = {}

    def look_up(self, users: Iterable[str]) -> None:
        """Load the accounts that answer for some users, locked in the order of their ids."""
        new = sorted(set(users) - self._named.keys())
        self._named |= dict.fromkeys(new)
        for at in range(0, len(new), 500):
            for row in self._connection.execute(_NAMED, {"users": new[at : at + 500]}):
                self._named[row.user_id] = (row.id, row.alias_of or row.id)
        ids = {named[1] for user in new if (named := self._named[user])}
        self._loaded |= load_all(self._connection, ids - self._loaded.keys(), lock=True)

    def find(self, user: str) -> LoadedAccount | None:
        """Return the account that answers for *user*."""
        self.look_up([user])
        named = self._named[user]
        return self._loaded[named[1]] if named else None

    def own(self, user: str) -> LoadedAccount | None:
        """Return the account that bears the id *user* and is nobody's alias."""
        account = self.find(user)
        named = self._named[user]
        return account if named and named[0] == named[1] else None

    def make(self, user: str, call: Call) -> LoadedAccount | None:
        """Make an account with its lifetime grant, yet to be settled; None if it was just made."""
        plan = self._catalog.default
        id = put_account(self._connection, self._catalog, user, call)
        if id is None:
            del self._named[user]
            return None
        account = new_account(id, user, plan.name, call.now)
        if plan.credits:
            account.book.lots.append(lifetime(user, plan.name, plan.credits, call.now))
        self._named[user], self._loaded[id] = (id, id), account
        return account

    def forget(self) -> None:
        """Forget what was loaded: it has been written, and something else has changed it."""
        self._named.clear()
        self._loaded.clear()
