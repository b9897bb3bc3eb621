"""What sync asks Polar for: everything, what is newer than a time, one user, or what looks overdue."""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, TypeVar

from polarcredits.facts import CustomerFact
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.readings import customers_after, known_of, live_subscriptions
from polarcredits.periods import format_time
from polarcredits.polar_api import Kind, PolarApi
from polarcredits.polar_values import Page
from polarcredits.userids import PLACEHOLDER

DUNNING = timedelta(days=30)
"""A late payment keeps its order's `created_at`, so orders are read back for as long as Polar tries."""
_CHUNK = 100
_RECENT = 10_000
_FEW = 25
"""As many ids fit into an address."""

Progress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one kind, all true at `as_of`."""

    kind: Kind
    rows: tuple[Mapping[str, Any], ...]
    as_of: datetime
    fresh: int
    """How many of them had not come before."""


class _Seen:
    """Which ids came, in eight bytes each but for the last ones."""

    def __init__(self) -> None:
        self._sorted = array("Q")
        self._recent: set[int] = set()

    def add(self, id: object) -> bool:
        """Note that *id* came; say whether that is new."""
        if id in self:
            return False
        self._recent.add(_hash(id))
        if len(self._recent) > _RECENT:
            self._sorted = array("Q", sorted([*self._sorted, *self._recent]))
            self._recent.clear()
        return True

    def __contains__(self, id: object) -> bool:
        wanted = _hash(id)
        at = bisect_left(self._sorted, wanted)
        return wanted in self._recent or (at < len(self._sorted) and self._sorted[at] == wanted)


def _hash(id: object) -> int:
    return int.from_bytes(blake2b(str(id).encode("utf-8", "surrogatepass"), digest_size=8).digest())


class Reader:
    """Decides what to ask Polar for.

    Orders come before subscriptions: a period of which an order tells is never taken for one of
    an endpoint that sends no orders (docs/rules.md §4.2 c).
    """

    def __init__(
        self, ledger: Ledger, polar: PolarApi, failed: list[dict[str, str]], progress: Progress | None = None
    ) -> None:
        self._ledger = ledger
        self._polar = polar
        self._failed = failed
        self._progress = progress or (lambda done, total: None)
        self._done = 0
        self._seen: dict[str, _Seen] = {}
        self._organizations: set[object] = set()
        self._as_of: datetime | None = None

    def everything(self) -> Iterator[Batch]:
        """Read all there is; customers that we know and Polar no longer does are deleted ones."""
        for kind in ("customer", "order", "subscription", "refund", "dispute"):
            yield from self._batches(kind, self._polar.rows(kind))
        yield from self._gone_customers()

    def newer(self, since: datetime) -> Iterator[Batch]:
        """Read what can have changed at *since* or later; an order may be paid long after it was made.

        Polar does not say which customers were changed or deleted: all are read.
        """
        polar, back = self._polar, format_time(since - DUNNING)
        yield from self._batches("customer", polar.rows("customer"))
        yield from self._batches("order", polar.rows("order", created_after=back))
        recent = format_time(since)
        changed: tuple[dict[str, Any], ...] = (
            {"status": ["active", "past_due", "paused", "trialing"]},
            {"canceled_at_after": recent},
            {"started_after": recent},
        )
        for filters in changed:
            yield from self._batches("subscription", polar.rows("subscription", **filters))
        for id in _all(lambda after: live_subscriptions(self._ledger, after, _CHUNK), lambda id: id):
            if not self._came("subscription", id):
                yield from self._one("subscription", id)
        yield from self._batches("refund", polar.newest("refund", since - DUNNING))
        yield from self._batches("dispute", polar.rows("dispute"))
        yield from self._gone_customers()

    def of_user(self, user: str) -> Iterator[Batch]:
        """Read all about one user, by external id, by the customers we know and by metadata."""
        known = known_of(self._ledger, user)
        named = None if user.startswith(PLACEHOLDER) else self._polar.customer_of(user)
        ids = {*known.customers, *([named.id] if named else [])}
        if user.startswith(PLACEHOLDER):
            ids.add(user.removeprefix(PLACEHOLDER))
        customers = sorted(ids)
        found = False
        for batch in self.of_customers(customers, known.orders, user=user):
            found = True
            yield batch
        if not found:
            self._ledger.balance(user)

    def of_customers(
        self, customers: Sequence[str], orders: Iterable[str], *, user: str | None = None
    ) -> Iterator[Batch]:
        """Read all about some customers, and what bears the *user*'s id in its metadata."""
        for id in customers:
            facts = customers_after(self._ledger, id, 1, inclusive=True)
            if facts and facts[0].id == id:
                yield from self._customer(facts[0])
            else:
                yield from self._one("customer", id)
        theirs: list[dict[str, Any]] = [{"customer_id": list(few)} for few in _chunks(customers)]
        if user is not None:
            theirs.append({"metadata": {"user_id": user}})
        paid = set(orders)
        for kind in ("order", "subscription"):
            for filters in theirs:
                for batch in self._batches(kind, self._polar.rows(kind, **filters)):
                    paid |= {str(row.get("id")) for row in batch.rows if kind == "order"}
                    yield batch
        for few in _chunks(customers):
            yield from self._batches("refund", self._polar.rows("refund", customer_id=list(few)))
        for some in _chunks(sorted(paid)):
            yield from self._batches("dispute", self._polar.rows("dispute", order_id=list(some)))

    def overdue(self, at: datetime) -> Iterator[Batch]:
        """Read the live subscriptions whose period is over, and their orders."""
        ids = _all(lambda after: live_subscriptions(self._ledger, after, _CHUNK, over_by=at), lambda id: id)
        for few in _chunks(list(ids)):
            yield from self._batches("order", self._polar.rows("order", subscription_id=list(few)))
            for id in few:
                yield from self._one("subscription", id)

    def _gone_customers(self) -> Iterator[Batch]:
        """Look for the customers that we know and that did not come."""
        for fact in _all(lambda after: customers_after(self._ledger, after, _CHUNK), lambda f: f.id):
            if not self._came("customer", fact.id):
                yield from self._customer(fact)

    def _customer(self, fact: CustomerFact) -> Iterator[Batch]:
        """Read a customer that we know; one who is gone was deleted, if it was the token's to see."""
        page = self._polar.get("customer", fact.id)
        if page is not None:
            yield from self._batches("customer", [page])
            return
        row: dict[str, Any] = json.loads(fact.snapshot.body)
        if row.get("organization_id") not in self._organizations_seen():
            why = "Polar has no such customer, and POLAR_ACCESS_TOKEN is of another organization than theirs"
            self._failed.append({"kind": "customer", "id": fact.id, "error": why})
            return
        if self._as_of is not None:
            deleted = (row | {"deleted_at": format_time(self._as_of)},)
            yield Batch("customer", deleted, self._as_of, self._fresh("customer", deleted))

    def _organizations_seen(self) -> set[object]:
        """Return the organizations that the token can see."""
        if not self._organizations:
            self._note(self._polar.first_products())
        return self._organizations

    def _note(self, page: Page) -> None:
        self._as_of = page.as_of
        self._organizations |= {row.get("organization_id") for row in page.rows} - {None}

    def _one(self, kind: Kind, id: str) -> Iterator[Batch]:
        page = self._polar.get(kind, id)
        if page is not None:
            yield from self._batches(kind, [page])

    def _batches(self, kind: Kind, pages: Iterable[Page]) -> Iterator[Batch]:
        begun = self._done
        for page in pages:
            if kind == "customer":
                self._note(page)
            fresh = self._fresh(kind, page.rows)
            if page.rows:
                yield Batch(kind, page.rows, page.as_of, fresh)
            self._done += fresh
            self._progress(self._done, max(self._done, begun + page.total))

    def _fresh(self, kind: Kind, rows: Iterable[Mapping[str, Any]]) -> int:
        """Note that rows came; return how many had not before."""
        seen = self._seen.setdefault(kind, _Seen())
        return sum(seen.add(row.get("id")) for row in rows)

    def _came(self, kind: Kind, id: str) -> bool:
        return id in self._seen.get(kind, ())


def _all(some: Callable[[str], list[T]], id: Callable[[T], str]) -> Iterator[T]:
    """Yield all of a list that is read in parts, each beginning after the last one's id."""
    after = ""
    while few := some(after):
        yield from few
        after = id(few[-1])


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(ids), _FEW):
        yield ids[at : at + _FEW]
