"""A load test as one HTML file that reads anywhere: no script, nothing from the network, light and dark."""

from __future__ import annotations

import time
from html import escape

from tuna_nb.benchmarks.report import LoadReport
from tuna_nb.views import html
from tuna_nb.views.load_charts import charts_of
from tuna_nb.views.sheets import sheet

_STYLE = """
:root { color-scheme: light dark; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 14px/1.5 system-ui, sans-serif; }
body > div { margin-bottom: 2rem; overflow-x: auto; }
table { border-collapse: collapse; }
td, th { padding: 2px 12px 2px 0; }
"""


def render(report: LoadReport) -> str:
    """The whole file."""
    at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(report.began_at))
    parts = [html.render(sheet(report)), *(chart.html for chart in charts_of(report))]
    body = "".join(f"<div>{part}</div>" for part in parts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Whatever a name or an error of the server's holds, this file loads and runs nothing.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(report.name)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{escape(report.name)}</h1><p>{escape(at)}</p>{body}</body></html>\n"
    )
