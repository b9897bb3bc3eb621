"""Our values as the JSON of the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polarcredits.ledger.values import HoldState, Receipt, Transaction
    from polarcredits.lots import Lot


def grant_document(lot: Lot) -> dict[str, Any]:
    """Return a grant."""
    return {
        "id": None if lot.id is None else str(lot.id),
        "source": lot.source,
        "plan": lot.plan,
        "amount": lot.amount,
        "used": lot.spent,
        "remaining": max(0, lot.remaining),
        "effective_at": lot.effective_at,
        "expires_at": lot.expires_at,
    }


def transaction_document(entry: Transaction) -> dict[str, Any]:
    """Return a ledger entry."""
    return {
        "id": entry.id,
        "user": entry.user,
        "type": entry.type,
        "amount": entry.amount,
        "balance_after": entry.balance_after,
        "grant_id": entry.grant_id,
        "operation": entry.operation,
        "reason": entry.reason,
        "metadata": entry.metadata,
        "actor": entry.actor,
        "idempotency_key": entry.idempotency_key,
        "occurred_at": entry.occurred_at,
        "recorded_at": entry.recorded_at,
    }


def receipt_document(receipt: Receipt) -> dict[str, Any]:
    """Return a receipt."""
    return {
        "transaction": transaction_document(receipt.transaction),
        "balance": receipt.balance,
        "available": receipt.available,
        "replayed": receipt.replayed,
    }


def hold_document(state: HoldState) -> dict[str, Any]:
    """Return a hold."""
    return {
        "hold": {
            "id": state.id,
            "user": state.user,
            "amount": state.amount,
            "captured": state.captured,
            "status": state.status,
            "expires_at": state.expires_at,
        }
    }
