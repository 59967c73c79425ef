"""Run by Alembic with the connection that `store` has opened and locked."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], render_as_batch=True)
context.run_migrations()
