"""Budgets, what has fired, and when something that bills without serving is noticed."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "budgets",
        sa.Column("id", sa.String(40), primary_key=True),
        # A deployment's id or "all": no key to deployments.
        sa.Column("scope", sa.String(40), nullable=False),
        sa.Column("limit_usd", sa.Float, nullable=False),
        sa.Column("per", sa.String(10), nullable=False),
        sa.Column("warn", sa.JSON, nullable=False),
        sa.Column("action", sa.String(20), nullable=False),
        sa.Column("webhook", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.UniqueConstraint("scope", "per", name="budgets_once"),
    )
    op.create_table(
        "firings",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("subject", sa.String(60), nullable=False),
        sa.Column("deployment_id", sa.String(40), nullable=False),
        sa.Column("window", sa.String(40), nullable=False),
        sa.Column("level", sa.Float, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("told", sa.JSON, nullable=False),
        sa.Column("action", sa.String(20), nullable=False),
        sa.Column("done_at", sa.Float),
        sa.Column("trouble", sa.Text, nullable=False),
        sa.Column("webhook_scope", sa.String(40)),
        sa.Column("told_at", sa.Float),
        sa.Column("held_until", sa.Float, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.UniqueConstraint("subject", "deployment_id", "window", "level", name="firings_once"),
    )
    op.create_index("firings_of", "firings", ["deployment_id", "done_at"])
    op.create_table(
        "quiet_rules",
        sa.Column("deployment_id", sa.String(40), primary_key=True),
        sa.Column("quiet_s", sa.Float, nullable=False),
        sa.Column("forgotten_s", sa.Float, nullable=False),
        sa.Column("stop", sa.Boolean, nullable=False),
    )
