"""Opening a ledger as the settings say: the database, the catalog and Polar's environment."""

from __future__ import annotations

from polarcredits.errors import PolarCreditsError
from polarcredits.ledger.ingest import check_stamp
from polarcredits.ledger.ledger import Ledger
from polarcredits.settings import Settings


def open_configured(settings: Settings, *, actor: str = "api") -> Ledger:
    """Open the ledger of *settings*; ConfigError if it holds facts of another Polar environment."""
    ledger = Ledger(settings.database_url, settings.catalog, actor=actor)
    try:
        ledger.reading(lambda connection: check_stamp(connection, settings.environment))
    except PolarCreditsError:
        ledger.close()
        raise
    return ledger
