"""The ledger laws as a few ordered scans: which accounts break one (docs/rules.md §6).

These find an account; `verify` then recomputes it alone and names what is wrong. Each statement reads its
tables once, in the order of their keys, so the time grows with the entries and the memory does not.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, func, select, text

from polarcredits.ledger import tables as t

ACCOUNTS_A_STEP = 50_000

CHAIN = text("""
SELECT DISTINCT e.account_id FROM credit_transactions e
LEFT JOIN credit_transactions p ON p.account_id = e.account_id AND p.sequence = e.sequence - 1
WHERE e.account_id >= :first AND e.account_id < :beyond AND (
  e.balance_after - e.amount <> coalesce(p.balance_after, 0)
  OR (p.sequence IS NULL AND e.sequence <> 1) OR p.occurred_at > e.occurred_at)
""")
"""Each entry follows the one before it: no gap, its balance after, its time. So the last one has the sum."""

BALANCES = text("""
SELECT a.id FROM accounts a
LEFT JOIN credit_balances b ON b.account_id = a.id
LEFT JOIN credit_transactions l ON l.account_id = a.id AND l.sequence = b.sequence
WHERE a.id >= :first AND a.id < :beyond AND (
  b.account_id IS NULL OR b.balance <> coalesce(l.balance_after, 0)
  OR (l.sequence IS NULL AND b.sequence <> 0)
  OR EXISTS (SELECT 1 FROM credit_transactions n
   WHERE n.account_id = a.id AND n.sequence = coalesce(b.sequence, 0) + 1))
""")
"""The balance row says what the last entry says, and none comes after it."""

HOLDINGS = text("""
SELECT b.account_id FROM credit_balances b
LEFT JOIN (
  SELECT account_id, sum(remaining) AS remaining, sum(held) AS held,
   sum(CASE WHEN expired = 0 AND remaining > held THEN remaining - held ELSE 0 END) AS spendable
  FROM grants WHERE account_id >= :first AND account_id < :beyond GROUP BY account_id
) g ON g.account_id = b.account_id
LEFT JOIN (
  SELECT account_id, sum(amount) AS amount FROM holds
  WHERE status = 'open' AND account_id >= :first AND account_id < :beyond GROUP BY account_id
) h ON h.account_id = b.account_id
WHERE b.account_id >= :first AND b.account_id < :beyond AND (
  coalesce(g.remaining, 0) - b.unsettled <> b.balance OR coalesce(g.spendable, 0) < b.unsettled
  OR b.held <> coalesce(h.amount, 0) OR b.held <> coalesce(g.held, 0))
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
"""Each grant's remaining, used and carried credits against the entries, draws and carries that moved it."""


def suspects(connection: Connection, progress: Callable[[int, int], None]) -> set[int]:
    """Return the accounts that break a law; `progress` is called with (done, total) accounts."""
    last = connection.execute(select(func.max(t.accounts.c.id))).scalar() or 0
    found: set[int] = set()
    for first in range(0, last + 1, ACCOUNTS_A_STEP):
        beyond = min(first + ACCOUNTS_A_STEP, last + 1)
        for law in (CHAIN, BALANCES, HOLDINGS, DRAWS):
            found |= set(connection.execute(law, {"first": first, "beyond": beyond}).scalars())
        progress(beyond, last + 1)
    return found | set(connection.execute(MOVEMENTS).scalars())
