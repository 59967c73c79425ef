"""The records: every deployment, every resource, before a provider is asked for it; and the ledger of what was up.

SQLAlchemy 2 over SQLite in the user's data folder, or a team's PostgreSQL. Imported only where records are needed.
"""

from tuna_nb.store.database import SCHEMA_VERSION
from tuna_nb.store.store import Store, jsonable

__all__ = ["SCHEMA_VERSION", "Store", "jsonable"]
