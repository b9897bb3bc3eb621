"""The ledger laws as a few ordered scans: which accounts break one (docs/rules.md §6).

These find an account; `verify` then recomputes it alone and names what is wrong. Each statement reads its
tables once, in the order of their keys, so the time grows with the entries and the memory does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Connection, TextClause, func, select, text

from polarcredits.ledger import tables as t
from polarcredits.ledger.ledger import Ledger

ACCOUNTS_A_STEP = 50_000

CHAIN = text("""
SELECT DISTINCT e.account_id FROM credit_transactions e
LEFT JOIN credit_transactions p ON p.account_id = e.account_id AND p.sequence = e.sequence - 1
WHERE e.account_id >= :first AND e.account_id < :beyond AND (
  e.balance_after - e.amount <> p.balance_after OR p.occurred_at > e.occurred_at
  OR (p.sequence IS NULL AND (e.sequence <> 1 OR e.balance_after <> e.amount)
   AND NOT EXISTS (SELECT 1 FROM openings o
    WHERE o.account_id = e.account_id AND o.sequence = e.sequence - 1
     AND o.balance = e.balance_after - e.amount AND o.occurred_at <= e.occurred_at)))
""")
"""Each entry follows the one before it, or an opening: no gap, its balance after, its time.

So the last one has the sum.
"""

OPENINGS = text("""
SELECT account_id FROM (
  SELECT o.account_id, o.balance
   - coalesce(lag(o.balance) OVER (PARTITION BY o.account_id ORDER BY o.sequence), 0)
   - (SELECT coalesce(sum(g.amount), 0) FROM grant_openings g
    WHERE g.account_id = o.account_id AND g.sequence = o.sequence) AS off
  FROM openings o WHERE o.account_id >= :first AND o.account_id < :beyond
) AS each_opening WHERE off <> 0
UNION
SELECT o.account_id FROM openings o
WHERE o.account_id >= :first AND o.account_id < :beyond AND EXISTS (
  SELECT 1 FROM credit_transactions e WHERE e.account_id = o.account_id AND e.sequence <= o.sequence)
""")
"""What is archived adds up to its opening, grant by grant, and nothing of it is among the entries."""

BALANCES = text("""
SELECT a.id FROM accounts a
LEFT JOIN credit_balances b ON b.account_id = a.id
LEFT JOIN credit_transactions l ON l.account_id = a.id AND l.sequence = b.sequence
WHERE a.id >= :first AND a.id < :beyond AND (
  b.account_id IS NULL OR b.balance <> coalesce(l.balance_after, 0)
  OR (l.sequence IS NULL AND b.sequence <> 0) OR (a.alias_of IS NOT NULL AND (b.balance <> 0 OR b.held <> 0))
  OR EXISTS (SELECT 1 FROM credit_transactions n
   WHERE n.account_id = a.id AND n.sequence = coalesce(b.sequence, 0) + 1))
""")
"""The balance row says what the last entry says, none comes after it, and a merged account has nothing."""

HOLDINGS = text("""
SELECT b.account_id FROM credit_balances b LEFT JOIN grants g ON g.account_id = b.account_id
WHERE b.account_id >= :first AND b.account_id < :beyond
GROUP BY b.account_id, b.balance, b.unsettled, b.held
HAVING coalesce(sum(g.remaining), 0) - b.unsettled <> b.balance
 OR coalesce(sum(CASE WHEN g.expired = 0 AND g.remaining > g.held THEN g.remaining - g.held END), 0)
  < b.unsettled
 OR b.held <> coalesce(sum(g.held), 0)
 OR b.held <> (SELECT coalesce(sum(h.amount), 0) FROM holds h
  WHERE h.account_id = b.account_id AND h.status = 'open')
""")
"""What the grants hold, what is still to be settled on them, and what open holds reserve."""

DRAWS = text("""
SELECT DISTINCT d.account_id FROM grant_draws d
LEFT JOIN grant_draws n ON n.account_id = d.account_id AND n.first_sequence = d.first_sequence
 AND n.position = d.position + 1
LEFT JOIN credit_transactions f ON f.account_id = d.account_id AND f.sequence = d.first_sequence
LEFT JOIN credit_transactions l ON l.account_id = d.account_id AND l.sequence = d.last_sequence
WHERE d.account_id >= :first AND d.account_id < :beyond AND (
  d.credits <> d.balance_from - d.balance_to OR d.credits <= 0
  OR d.balance_to <> coalesce(n.balance_from, l.balance_after, d.balance_to - 1)
  OR (d.position = 0 AND d.balance_from <> coalesce(f.balance_after - f.amount, d.balance_from - 1)))
""")
"""What grants paid, stretch by stretch, from the balance before its deductions to the one after them."""

MOVEMENTS = text("""
SELECT DISTINCT g.account_id FROM grants g JOIN (
  SELECT grant_id FROM (
    SELECT id AS grant_id, -remaining AS moved, -used AS spent, -carried_in AS carried FROM grants
    UNION ALL
    SELECT grant_id, amount, 0, 0 FROM credit_transactions WHERE grant_id IS NOT NULL
    UNION ALL
    SELECT grant_id, amount, CASE WHEN type IN ('deduct', 'reversal') THEN -amount ELSE 0 END, 0
    FROM grant_openings
    UNION ALL
    SELECT grant_id, balance_to - balance_from, balance_from - balance_to, 0 FROM grant_draws
    UNION ALL
    SELECT grant_id, share, -share, 0 FROM (
      SELECT d.grant_id,
       CASE WHEN e.balance_after - e.amount < d.balance_from THEN e.balance_after - e.amount
        ELSE d.balance_from END
       - CASE WHEN e.balance_after > d.balance_to THEN e.balance_after ELSE d.balance_to END AS share
      FROM credit_transactions r
      JOIN credit_transactions e ON e.account_id = r.reverses_account AND e.sequence = r.reverses_sequence
      JOIN grant_draws d ON d.account_id = e.account_id AND d.first_sequence <= e.sequence
       AND d.last_sequence >= e.sequence
      WHERE r.reverses_sequence IS NOT NULL
    ) AS shares WHERE share > 0
    UNION ALL
    SELECT source_id, CASE WHEN debt = 1 THEN amount ELSE 0 END, 0, 0 FROM grant_carries
    UNION ALL
    SELECT target_id, CASE WHEN debt = 1 THEN -amount ELSE 0 END, 0, amount FROM grant_carries
  ) AS lines GROUP BY grant_id HAVING sum(moved) <> 0 OR sum(spent) <> 0 OR sum(carried) <> 0
) AS broken ON broken.grant_id = g.id
""")
"""Each grant's remaining, used and carried credits against the entries, openings, draws and carries."""


def suspects(ledger: Ledger, progress: Callable[[int, int], None]) -> set[int]:
    """Return the accounts that break a law; `progress` is called with (done, total) accounts.

    Each law is one statement on one snapshot, so they are asked in two threads, except within a
    transaction. An account that is only being written may be among them; who looks again clears it.
    """

    def chains(connection: Connection) -> set[int]:
        return _by_steps(connection, (CHAIN,), progress)

    def holdings(connection: Connection) -> set[int]:
        found = _by_steps(connection, (BALANCES, OPENINGS, HOLDINGS, DRAWS), lambda done, total: None)
        return found | set(connection.execute(MOVEMENTS).scalars())

    if ledger.joined is not None:
        return ledger.reading(chains) | ledger.reading(holdings)
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(ledger.reading, holdings)
        return ledger.reading(chains) | beside.result()


def _by_steps(
    connection: Connection, laws: Sequence[TextClause], progress: Callable[[int, int], None]
) -> set[int]:
    last = connection.execute(select(func.max(t.accounts.c.id))).scalar() or 0
    found: set[int] = set()
    for first in range(0, last + 1, ACCOUNTS_A_STEP):
        beyond = min(first + ACCOUNTS_A_STEP, last + 1)
        for law in laws:
            found |= set(connection.execute(law, {"first": first, "beyond": beyond}).scalars())
        progress(beyond, last + 1)
    return found
