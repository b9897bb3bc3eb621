"""S6: a refill of everybody against set-based SQL that writes the same rows, and a refill of nobody.

Raw is what a person writes who knows that each user has one allowance and one lifetime grant: seven
statements in one transaction, on a copy of the same file, with the same durability.
"""

from __future__ import annotations

RAW = (
    """
CREATE TEMP TABLE work AS
SELECT b.account_id AS account, b.balance, b.sequence, b.unsettled, b.settled_sequence AS settled,
 max(b.last_occurred_at, a.expires_at) AS at, a.id AS old, l.id AS life, a.remaining AS had,
 min(b.unsettled, a.remaining) AS first, b.unsettled - min(b.unsettled, a.remaining) AS second,
 a.remaining - min(b.unsettled, a.remaining) AS rest, o.first_index AS number, o.credits, o.prefix, o.plan,
 o.subscription_id, o.clawback, json_extract('[' || o.bounds || ']', '$[0]') AS start,
 json_extract('[' || o.bounds || ']', '$[1]') AS stop,
 row_number() OVER (ORDER BY b.account_id) + (SELECT max(id) FROM grants) AS new
FROM credit_balances b
JOIN grants a ON a.account_id = b.account_id AND a.source = 'allowance' AND a.expired = 0
JOIN grants l ON l.account_id = b.account_id AND l.source = 'lifetime'
JOIN outlooks o ON o.account_id = b.account_id
WHERE b.next_due_at <= :now ORDER BY b.account_id
""",
    """
INSERT INTO grants (id, account_id, key, source, plan, gross, clawed, used, carried_in, remaining, held,
 effective_at, expires_at, expired, withdrawn, clawback, cause_kind, cause_id, period_start, period_end)
SELECT new, account, prefix || number, 'allowance', plan, credits, 0, 0, 0, credits, 0,
 start, stop, 0, 0, clawback, 'subscription', subscription_id, start, stop FROM work
""",
    """
INSERT INTO grant_draws (account_id, first_sequence, position, last_sequence, grant_id, credits,
 balance_from, balance_to)
SELECT account, settled + 1, 0, sequence, old, first, balance + unsettled, balance + unsettled - first
FROM work WHERE first > 0 UNION ALL
SELECT account, settled + 1, 1, sequence, life, second, balance + second, balance FROM work WHERE second > 0
ORDER BY 1, 3
""",
    """
INSERT INTO credit_transactions (account_id, sequence, type, amount, balance_after, grant_id, occurred_at,
 actor, recorded_at)
SELECT account, sequence + 1, 'grant', credits, balance + credits, new, at, 'refill', :wall FROM work
UNION ALL SELECT account, sequence + 2, 'expire', -rest, balance + credits - rest, old, at, 'refill', :wall
FROM work WHERE rest > 0 ORDER BY 1, 2
""",
    """
UPDATE grants SET used = used + w.first, remaining = 0, expired = 1 FROM work w WHERE grants.id = w.old
""",
    """
UPDATE grants SET used = used + w.second, remaining = remaining - w.second
FROM work w WHERE grants.id = w.life AND w.second > 0
""",
    """
UPDATE credit_balances SET balance = w.balance + w.credits - w.rest, unsettled = 0,
 sequence = w.sequence + 1 + (w.rest > 0), settled_sequence = w.sequence + 1 + (w.rest > 0),
 next_due_at = w.stop, last_occurred_at = w.at
FROM work w WHERE credit_balances.account_id = w.account
""",
)
