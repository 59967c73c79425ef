"""Alembic revisions of the store; they ship with the package and run when an older store is opened."""
