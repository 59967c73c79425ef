"""Rows are kept so that nothing is lost, and what is not a row is named."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tests.benchmarks.requests import failed, row
from tuna_nb.benchmarks import rows as files
from tuna_nb.benchmarks.rows import ERRORS, SCHEMA, Row
from tuna_nb.errors import UsageError

ROWS = (
    row(0, gap_ms=19.123456789),
    row(1, tokens=1, backend=None, attempts=None, finish_reason=None),
    failed(2, "cut", sent_s=None, detail='says "no", in ünïcode\nand two lines'),
    replace(row(3), input_tokens=None, output_tokens=None, warmup=True),
)


def test_the_schema_names_each_field_in_its_order() -> None:
    assert list(SCHEMA) == [f.name for f in fields(Row)]


@pytest.mark.parametrize("ending", files.FORMATS)
def test_what_is_written_is_read_again_just_so(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    files.write(path, ROWS)
    assert files.read(path) == files.Kept(ROWS)
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "nothing beside it"


def test_a_parquet_file_says_what_its_columns_mean(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    files.write(tmp_path / "rows.parquet", ROWS)
    schema = pq.read_schema(tmp_path / "rows.parquet")
    assert schema.field("gaps_ms").metadata[b"meaning"].decode() == SCHEMA["gaps_ms"]


@pytest.mark.parametrize("cut", [1, 30])
def test_a_last_line_that_was_cut_off_is_told_and_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl"
    files.write(path, ROWS)
    path.write_bytes(path.read_bytes()[:-cut])
    kept = files.read(path)
    if cut == 1:
        assert kept == files.Kept(ROWS), "only its end of line is missing"
    else:
        assert kept.rows == ROWS[:-1]
        assert kept.notes == ("the last line of rows.jsonl was cut off and is left out",)


@pytest.mark.parametrize(
    "bad",
    ["{", "[]", "{}", '{"number": 1}', files.line(ROWS[0]).replace('"number":0', '"number":"0"'),
     files.line(ROWS[0]).replace('"warmup":false', '"warmup":0'), files.line(ROWS[0]).replace("[19.", '["",19.')],
)  # fmt: skip
def test_another_bad_line_is_an_error_with_its_number(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{files.line(ROWS[0])}\n{bad}\n{files.line(ROWS[1])}\n")
    with pytest.raises(UsageError, match=r"rows\.jsonl, line 2 is no row"):
        files.read(path)


def test_fields_of_a_newer_version_are_left_out() -> None:
    assert files.parse(json.dumps(json.loads(files.line(ROWS[0])) | {"colour": "red"})) == ROWS[0]


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError) as e:
        files.check_format(tmp_path / "rows.parquet")
    assert e.value.hint == "pip install 'tuna-nb[bench]', or write .jsonl"
    files.check_format(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("name", ["rows.csv", "rows", "no/such/folder/rows.jsonl"])
def test_a_name_that_can_hold_no_rows_is_refused_first(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        files.check_format(tmp_path / name)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    files.write(path, ROWS[:1])
    with pytest.raises(ValueError, match="JSON"):
        files.write(path, [replace(ROWS[0], ended_s=float("nan"))])
    assert files.read(path).rows == ROWS[:1]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_every_kind_of_error_is_a_word() -> None:
    assert "stopped" in ERRORS
    assert len(set(ERRORS)) == len(ERRORS)
