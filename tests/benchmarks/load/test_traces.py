"""Recorded traffic, as it is published."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tuna_nb.benchmarks.load.traces import TraceRow, load
from tuna_nb.errors import RequestError

SHARED = Path(__file__).parents[3].parent / "shared/data/azure_llm_2023_conv_5min.csv"
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.017335+00:00,2399,6
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
JSONL = '{"timestamp": 1.5, "input_tokens": 10, "output_tokens": 20}\n\n{"timestamp": 1.0, "input_tokens": 1, "output_tokens": 2}\n'
MOONCAKE = '{"timestamp": 1000, "input_length": 6955, "output_length": 52, "hash_ids": [1]}\n{"timestamp": 3500, "input_length": 1, "output_length": 2, "hash_ids": [2]}\n'


def write(folder: Path, text: str, name: str = "trace.csv") -> str:
    file = folder / name
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(file)


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_the_azure_trace_is_read_as_published(tmp_path: Path, name: str) -> None:
    rows = load(write(tmp_path, AZURE, name))
    assert [(r.input_tokens, r.output_tokens) for r in rows] == [(374, 44), (396, 109), (879, 55)]
    assert [r.at_s for r in rows] == pytest.approx([0, 4.314579, 4.541877], abs=2e-6)


def test_dates_with_a_zone_are_read(tmp_path: Path) -> None:
    assert [r.at_s for r in load(write(tmp_path, AZURE_2024))] == pytest.approx([0, 0.007405], abs=1e-6)


def test_burst_gpt_is_read_as_published_and_its_failures_ask_for_one_token(tmp_path: Path) -> None:
    assert load(write(tmp_path, BURST)) == [TraceRow(0, 472, 18), TraceRow(40, 1087, 1), TraceRow(113, 417, 276)]


def test_jsonl_is_read_and_put_in_order_of_time(tmp_path: Path) -> None:
    assert load(write(tmp_path, JSONL)) == [TraceRow(0, 1, 2), TraceRow(0.5, 10, 20)]


def test_milliseconds_are_known_by_their_name(tmp_path: Path) -> None:
    assert load(write(tmp_path, MOONCAKE)) == [TraceRow(0, 6955, 52), TraceRow(2.5, 1, 2)]
    assert load(write(tmp_path, "t_ms,context_tokens,generated_tokens\n0,8,10\n52,3,8\n"))[1] == TraceRow(
        0.052, 3, 8
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (AZURE + "2023-11-16 18:15:52,abc,3\n", "line 5: ContextTokens is 'abc'"),
        (AZURE + "yesterday: noon,1,3\n", "line 5: 'yesterday: noon' is no date"),
        (AZURE + "17,1,3\n", "line 5: its time is written in another way"),
        (AZURE + "2023-11-16 18:15:52,3\n", "line 5: it has 2 columns, and the header 3"),
        (AZURE + "2023-11-16 18:15:52,-3,3\n", "line 5: ContextTokens is -3"),
        (JSONL + "{oops\n", "line 4: it is no JSON"),
        (JSONL + '{"timestamp": 1}\n', "line 4: it has no input tokens"),
        (JSONL + '{"timestamp": true, "input_tokens": 1, "output_tokens": 1}\n', "line 4: timestamp is True"),
        ("a,b\n1,2\n", "line 2: it has no time"),
        ("timestamp,input_tokens,output_tokens\n", "has no rows"),
        ("", "is empty"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        load(write(tmp_path, text))
    assert words in caught.value.message
    assert caught.value.hint


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no file"):
        load(str(tmp_path / "nothing.csv"))
    (tmp_path / "image.csv").write_bytes(b"\xff\xfe\x00\x81" * 100)
    with pytest.raises(RequestError, match="is not text"):
        load(str(tmp_path / "image.csv"))
    (tmp_path / "fake.gz").write_bytes(b"no gzip")
    with pytest.raises(RequestError, match="can't be read"):
        load(str(tmp_path / "fake.gz"))


@pytest.mark.skipif(not SHARED.exists(), reason="the recorded traces are not beside this checkout")
def test_a_recorded_trace_is_read_whole() -> None:
    rows = load(str(SHARED))
    assert len(rows) > 1000
    assert rows[-1].at_s == pytest.approx(300, abs=5)
