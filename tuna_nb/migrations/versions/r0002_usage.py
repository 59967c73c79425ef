"""What a destroyed deployment cost: billed intervals, and the traffic they served."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("resource_id", sa.Integer, sa.ForeignKey("resources.id"), primary_key=True),
        sa.Column("replica_id", sa.String(120), primary_key=True),
        sa.Column("started_at", sa.Float, primary_key=True),
        sa.Column("ended_at", sa.Float),
        sa.Column("price_per_hour_usd", sa.Float, nullable=False),
        sa.Column("granularity_s", sa.Float, nullable=False),
    )
    with op.batch_alter_table("deployments") as table:
        table.add_column(sa.Column("traffic", sa.JSON))
