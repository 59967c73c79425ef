"""The tables, as the newest migration leaves them."""

from __future__ import annotations

import sqlalchemy as sa

_meta = sa.MetaData()
_float, _text = sa.Float, sa.Text
DEPLOYMENTS = sa.Table(
    "deployments",
    _meta,
    sa.Column("id", sa.String, primary_key=True),
    *(sa.Column(n, sa.String) for n in ("name", "state")),
    *(sa.Column(n, sa.JSON) for n in ("request", "plan")),
    *(sa.Column(n, _text) for n in ("endpoint_url", "error")),
    *(sa.Column(n, _float) for n in ("created_at", "updated_at", "destroyed_at")),
)
RESOURCES = sa.Table(
    "resources",
    _meta,
    sa.Column("id", sa.Integer, primary_key=True),
    *(sa.Column(n, sa.String) for n in ("deployment_id", "role", "provider", "name", "state")),
    *(sa.Column(n, _text) for n in ("provider_id", "url", "error")),
    *(sa.Column(n, _float) for n in ("price_per_hour_usd", "created_at", "gone_at")),
)
JOBS = sa.Table(
    "jobs",
    _meta,
    sa.Column("id", sa.String, primary_key=True),
    *(sa.Column(n, sa.String) for n in ("name", "verb", "deployment_id", "state", "host")),
    *(sa.Column(n, _text) for n in ("step", "error")),
    *(sa.Column(n, _float) for n in ("fraction", "pid_created_at", "started_at", "seen_at", "ended_at")),
    sa.Column("pid", sa.Integer),
    sa.Column("cancel_requested", sa.Boolean),
)
EVENTS = sa.Table(
    "events",
    _meta,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("deployment_id", sa.String),
    sa.Column("at", _float),
    sa.Column("text", _text),
)
PRICES = sa.Table(
    "prices_seen",
    _meta,
    *(sa.Column(n, sa.String, primary_key=True) for n in ("provider", "kind", "gpu", "region")),
    sa.Column("at", _float, primary_key=True),
    sa.Column("price_per_hour_usd", _float),
)


INTERVALS = sa.Table(
    "intervals",
    _meta,
    sa.Column("resource_id", sa.Integer, primary_key=True),
    sa.Column("replica_id", sa.String, primary_key=True),
    sa.Column("started_at", _float, primary_key=True),
    *(sa.Column(n, _float) for n in ("ready_at", "ended_at", "seen_at", "granularity_s", "minimum_s", "error_s")),
    sa.Column("prices", sa.JSON),
    sa.Column("basis", sa.String),
    sa.Column("boot_told", sa.Boolean),
)
SPENT = sa.Table(
    "spent",
    _meta,
    sa.Column("resource_id", sa.Integer, primary_key=True),
    sa.Column("quarter", sa.BigInteger, primary_key=True),
    *(sa.Column(n, _float) for n in ("usd", "seconds", "boot_usd", "unknown_s", "error_usd")),
    sa.Column("starts", sa.Integer),
)
MINUTES = sa.Table(
    "load_minutes",
    _meta,
    sa.Column("deployment_id", sa.String, primary_key=True),
    sa.Column("at", sa.BigInteger, primary_key=True),
    sa.Column("told", sa.JSON),
)
QUARTERS = sa.Table(
    "load_quarters",
    _meta,
    sa.Column("deployment_id", sa.String, primary_key=True),
    sa.Column("at", sa.BigInteger, primary_key=True),
    sa.Column("told", sa.JSON),
)
SPANS = sa.Table(
    "looked",
    _meta,
    sa.Column("deployment_id", sa.String, primary_key=True),
    sa.Column("subject", sa.String, primary_key=True),
    sa.Column("begun_at", _float, primary_key=True),
    sa.Column("until", _float),
)
CHARGES = sa.Table(
    "charges",
    _meta,
    sa.Column("resource_id", sa.Integer, primary_key=True),
    sa.Column("started_at", _float, primary_key=True),
    sa.Column("ended_at", _float, primary_key=True),
    sa.Column("what", sa.String, primary_key=True),
    sa.Column("usd", _float),
)
BUDGETS = sa.Table(
    "budgets",
    _meta,
    sa.Column("id", sa.String, primary_key=True),
    *(sa.Column(n, sa.String) for n in ("scope", "per", "action")),
    sa.Column("limit_usd", _float),
    sa.Column("warn", sa.JSON),
    sa.Column("webhook", sa.Boolean),
    sa.Column("created_at", _float),
)
FIRINGS = sa.Table(
    "firings",
    _meta,
    sa.Column("id", sa.Integer, primary_key=True),
    *(sa.Column(n, sa.String) for n in ("subject", "deployment_id", "window", "action", "webhook_scope")),
    *(sa.Column(n, _float) for n in ("level", "at", "done_at", "told_at", "held_until")),
    *(sa.Column(n, _text) for n in ("text", "trouble")),
    sa.Column("told", sa.JSON),
    sa.Column("tries", sa.Integer),
)
QUIET = sa.Table(
    "quiet_rules",
    _meta,
    sa.Column("deployment_id", sa.String, primary_key=True),
    *(sa.Column(n, _float) for n in ("quiet_s", "forgotten_s")),
    sa.Column("stop", sa.Boolean),
)
