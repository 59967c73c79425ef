"""The ledger: each replica's billed life, sums of what has ended, the traffic by minutes, providers' accounts."""

import json
import math

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "intervals",
        sa.Column("resource_id", sa.Integer, sa.ForeignKey("resources.id"), primary_key=True),
        sa.Column("replica_id", sa.String(120), primary_key=True),
        sa.Column("started_at", sa.Float, primary_key=True),
        sa.Column("ready_at", sa.Float),
        sa.Column("ended_at", sa.Float),
        sa.Column("seen_at", sa.Float, nullable=False),
        sa.Column("granularity_s", sa.Float, nullable=False),
        sa.Column("minimum_s", sa.Float, nullable=False),
        sa.Column("error_s", sa.Float, nullable=False),
        sa.Column("prices", sa.JSON, nullable=False),
        sa.Column("basis", sa.String(20), nullable=False),
        sa.Column("boot_told", sa.Boolean, nullable=False),
    )
    op.create_index("intervals_open", "intervals", ["resource_id", "ended_at", "started_at"])
    op.create_table(
        "spent",
        sa.Column("resource_id", sa.Integer, sa.ForeignKey("resources.id"), primary_key=True),
        sa.Column("quarter", sa.BigInteger, primary_key=True),
        *(sa.Column(n, sa.Float, nullable=False) for n in ("usd", "seconds", "boot_usd", "unknown_s", "error_usd")),
        sa.Column("starts", sa.Integer, nullable=False),
    )
    for table in ("load_minutes", "load_quarters"):
        op.create_table(
            table,
            sa.Column("deployment_id", sa.String(40), sa.ForeignKey("deployments.id"), primary_key=True),
            sa.Column("at", sa.BigInteger, primary_key=True),
            sa.Column("told", sa.JSON, nullable=False),
        )
    op.create_table(
        "looked",
        sa.Column("deployment_id", sa.String(40), sa.ForeignKey("deployments.id"), primary_key=True),
        sa.Column("subject", sa.String(40), primary_key=True),
        sa.Column("begun_at", sa.Float, primary_key=True),
        sa.Column("until", sa.Float, nullable=False),
    )
    op.create_table(
        "charges",
        sa.Column("resource_id", sa.Integer, sa.ForeignKey("resources.id"), primary_key=True),
        sa.Column("started_at", sa.Float, primary_key=True),
        sa.Column("ended_at", sa.Float, primary_key=True),
        sa.Column("what", sa.String(200), primary_key=True),
        sa.Column("usd", sa.Float, nullable=False),
    )
    _take_over()
    op.drop_table("usage")
    # Not by a batch, which makes the table anew: others refer to it.
    op.drop_column("deployments", "traffic")


def _take_over() -> None:
    """What the table before this one held: intervals as their providers reported them."""
    c = op.get_bind()
    rows = c.execute(
        sa.text(
            "SELECT resource_id, replica_id, started_at, ended_at, price_per_hour_usd, granularity_s FROM usage"
        )
    ).fetchall()
    kept, spent = [], dict[tuple[int, int], tuple[float, float, int]]()
    for r in rows:
        kept.append(
            {
                "resource_id": r.resource_id,
                "replica_id": r.replica_id,
                "started_at": r.started_at,
                "ended_at": r.ended_at,
                "seen_at": r.started_at if r.ended_at is None else r.ended_at,
                "granularity_s": r.granularity_s,
                "prices": json.dumps([[r.started_at, r.price_per_hour_usd]]),
            }
        )
        if r.ended_at is None:
            continue
        at, before = int(r.started_at // 900) * 900, 0.0
        while at <= r.ended_at:
            up = max(0.0, min(at + 900, r.ended_at) - r.started_at)
            by_then = math.ceil(round(up / r.granularity_s, 6)) * r.granularity_s
            usd, seconds, starts = spent.get((r.resource_id, at), (0.0, 0.0, 0))
            seconds += by_then - before
            usd += (by_then - before) / 3600 * r.price_per_hour_usd
            spent[r.resource_id, at] = (usd, seconds, starts + (at <= r.started_at))
            before, at = by_then, at + 900
    if kept:
        c.execute(
            sa.text(
                "INSERT INTO intervals (resource_id, replica_id, started_at, ended_at, seen_at, granularity_s,"
                " minimum_s, error_s, prices, basis, boot_told) VALUES (:resource_id, :replica_id, :started_at,"
                " :ended_at, :seen_at, :granularity_s, 0, 0, :prices, 'provider-reported', false)"
            ),
            kept,
        )
    for (resource_id, quarter), (usd, seconds, starts) in spent.items():
        c.execute(
            sa.text(
                "INSERT INTO spent (resource_id, quarter, usd, seconds, boot_usd, unknown_s, error_usd, starts)"
                " VALUES (:r, :q, :usd, :seconds, 0, 0, 0, :starts)"
            ),
            {"r": resource_id, "q": quarter, "usd": usd, "seconds": seconds, "starts": starts},
        )
