"""`%tuna benchmark` in a notebook: it waits, shows how it goes, and ends with figures, charts and a DataFrame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import nothing_may_be_left
from tests.frontends.terminals import Terminal, deploy_words
from tests.headless.notebooks import WIDGET, errors, execute, notebook, outputs, text
from tests.views.pages import page
from tuna_nb.views.charts import PLOTLY

pytestmark = pytest.mark.e2e

LOAD = "%tuna benchmark load-test --service-name nb --rate 40 --requests 80 --input-tokens 9 --output-tokens 3"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path_factory.mktemp("nb") / "data")
    terminal(*deploy_words("nb", "--wait"))
    yield terminal
    terminal("destroy", "--all")
    nothing_may_be_left(terminal.folder)


@pytest.fixture(scope="module")
def saved(served: Terminal, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = notebook(
        "%load_ext tuna_nb",
        f"df = {LOAD} --name first",
        "df",
        f"{LOAD} --name second",
        f"quiet = {LOAD} --name third;",
        "print(type(df).__name__, int(df.loc['ttft_ms', 'count']), type(quiet).__name__)",
        "rows = %tuna benchmark show first --rows\nprint(len(rows), rows['ttft_s'].notna().all())",
        "%tuna benchmark compare first second",
        "%tuna benchmark list",
    )
    return execute(made, served.folder, tmp_path_factory.mktemp("cwd"), mode="widget")


def kinds(made: Any, cell: int) -> list[set[str]]:
    return [set(o.get("data", {})) for o in outputs(made, cell) if o.output_type != "stream"]


def test_nothing_fails_and_no_widget_is_left_in_the_file(saved: Any) -> None:
    import nbformat

    assert errors(saved) == []
    assert WIDGET not in nbformat.writes(saved)


@pytest.mark.parametrize("cell", [1, 3])
def test_a_load_test_ends_with_its_figures_and_charts(saved: Any, cell: int) -> None:
    found = kinds(saved, cell)
    assert sum(PLOTLY in one for one in found) == 3
    assert "failed = 0 of 80 requests" in text(saved, cell)
    assert "TTFT over time" in text(saved, cell)
    assert all("text/html" in one and "text/plain" in one for one in found)
    for output in outputs(saved, cell):
        page(output["data"]["text/html"])


def test_a_cell_that_shows_the_report_does_not_show_its_frame_too(saved: Any) -> None:
    assert not any("dataframe" in o.get("data", {}).get("text/html", "") for o in outputs(saved, 3))
    assert "dataframe" in outputs(saved, 2)[0]["data"]["text/html"], "asked for by its name it is shown"


def test_its_value_is_a_plain_dataframe_of_figures(saved: Any) -> None:
    assert text(saved, 5).split() == ["DataFrame", "80", "NoneType"], "a semicolon leaves nothing"
    assert not any(PLOTLY in one for one in kinds(saved, 4)), "a semicolon silences"
    assert text(saved, 6).split() == ["80", "True"]


def test_a_comparison_and_the_list_are_tables(saved: Any) -> None:
    assert "p95 TTFT" in text(saved, 7)
    assert {"first", "second", "third"} <= set(text(saved, 8).split())


def test_a_saved_notebook_of_one_run_stays_small(saved: Any, tmp_path: Path) -> None:
    import nbformat

    cell = nbformat.v4.new_notebook(cells=[saved.cells[3]])
    assert len(nbformat.writes(cell)) < 150_000
