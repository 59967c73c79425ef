"""Prices that were seen: of each provider's kind of sale, GPU and region the cheapest, whenever it changed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "prices_seen",
        sa.Column("provider", sa.String(60), primary_key=True),
        sa.Column("kind", sa.String(20), primary_key=True),
        sa.Column("gpu", sa.String(40), primary_key=True),
        sa.Column("region", sa.String(80), primary_key=True),
        sa.Column("at", sa.Float, primary_key=True),
        sa.Column("price_per_hour_usd", sa.Float, nullable=False),
    )
    op.create_index("prices_seen_gpu_at", "prices_seen", ["gpu", "at"])
