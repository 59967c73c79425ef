"""`tuna fit` as a person types it: a table, JSON, a DataFrame; two lines where it can't be answered."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.catalog.models.configs import SMALL
from tests.catalog.test_fit import offer
from tests.frontends.terminals import Done
from tuna_nb import grammar
from tuna_nb.catalog import kept
from tuna_nb.catalog.fit import FitList
from tuna_nb.catalog.kept import Kept
from tuna_nb.catalog.models.memory import UTILIZATION, Wanted
from tuna_nb.catalog.offers import OfferKind
from tuna_nb.commands.context import Context
from tuna_nb.commands.fit import fit
from tuna_nb.deployments import prices
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.settings import Settings
from tuna_nb.views import data, html, text
from tuna_nb.views.sheets import sheet

Tuna = Callable[..., Done]
QWEN = ("--model", "Qwen/Qwen3-32B")
NOW = 1.8e9 + 90


@pytest.fixture(autouse=True)
def nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def options(*words: str) -> Namespace:
    return grammar.parse(grammar.build("tuna"), ["fit", *words])


async def priced(*words: str) -> FitList:
    """With what three sources said a minute and a half ago."""
    settings = Settings.load()
    for source, sold in (
        ("gpuhunt-aws", offer("H100", 2.0, gpu_count=8)),
        ("modal", offer("H200", 4.4, OfferKind.SERVERLESS, provider="modal", most_gpus=8)),
        ("vast", offer("RTXPRO5000", 0.9, OfferKind.DEDICATED, provider="vast", gpu_count=4)),
    ):
        kept.save(settings.data_dir / prices.PRICES / f"{source}.json", Kept((sold,), NOW - 90))
    return await fit(options(*words), Context(Workspace(settings)))


def test_the_table_says_what_it_takes_line_by_line(tuna: Tuna) -> None:
    done = tuna("fit", *QWEN, "--gpu", "H100", code=0)
    for said in (
        "Qwen/Qwen3-32B fits 2x H100", "32.8 billion parameters", "64 full attention", "256 KiB on a single GPU",
        "32 requests of 4,096 tokens", "estimate", "fewer at once", "Tuna's own table",
    ):  # fmt: skip
        assert said in done.out
    assert "1x H100" in done.out
    assert "8x H100" in done.out
    assert done.err == ""


def test_what_is_not_said_is_as_the_engine_and_deploy_have_it() -> None:
    said, deploy = options(*QWEN), grammar.parse(grammar.build("tuna"), ["deploy", *QWEN, "--gpu", "L4"])
    assert said.gpu_memory_utilization == UTILIZATION
    assert said.max_model_len == deploy.max_model_len
    assert (said.concurrency, said.kv_cache_dtype) == (Wanted().concurrency, Wanted().kv_cache_dtype)


def test_json_has_every_line_in_bytes(tuna: Tuna) -> None:
    found = tuna("fit", *QWEN, "--gpu", "h100", "--tp-size", "2", "-o", "json").json
    assert found["model"]["parameters"] == 32_762_123_264
    assert found["model"]["layers"] == {"full attention": 64}
    (row,) = found["fits"]
    assert (row["gpu"], row["tp_size"], row["holds"]) == ("H100", 2, "yes")
    lines = {line["name"]: line for line in row["need"]["lines"]}
    assert row["need"]["bytes"] == sum(line["bytes"] for line in lines.values())
    assert lines["KV cache"]["bytes"] == 32 * 4096 * 128 * 1024
    assert all(line["how"] for line in lines.values())


def test_a_local_folder_is_as_good_as_a_name(tuna: Tuna, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    done = tuna("fit", "--model", str(tmp_path), "--gpu", "T4", "--max-model-len", "2048")
    assert f"config.json in {tmp_path}" in done.out
    assert "fits 1x T4" in done.out


async def test_prices_are_joined_and_their_age_is_told() -> None:
    found = await priced(*QWEN)
    by_gpu = {row.gpu: row for row in found.fits}
    price = by_gpu["H100"].price(OfferKind.SPOT)
    assert price is not None
    assert price.usd_per_hour == 16.0
    assert by_gpu["H200"].price(OfferKind.SERVERLESS) is not None
    # What someone sells is weighed too, common or not.
    assert by_gpu["RTXPRO5000"].price(OfferKind.DEDICATED) is not None
    shown = text.render(sheet(found, NOW))
    assert "16.00 aws" in shown
    assert "4.40 modal" in shown
    assert "3.60 vast" in shown
    assert "the oldest was seen" in shown
    assert "no prices are known" not in shown


async def test_in_a_notebook_it_is_a_table_of_numbers() -> None:
    table = data.frame(await priced(*QWEN))
    assert table is not None
    assert table["need_gib"].dtype == "float64"
    h100 = table.set_index("gpu").loc["H100"]
    assert h100["spot_usd_per_hour"] == 16.0
    nobody = table.set_index("gpu").loc["RTXPRO5000"]["spot_usd_per_hour"]
    assert math.isnan(nobody), "unknown, never 0"
    assert (table["usable_gib"] > 0).all()


async def test_a_hybrids_two_ends_are_shown() -> None:
    found = await priced("--model", "google/gemma-3-27b-it", "--max-model-len", "32768", "--gpu", "H200")
    shown = sheet(found, NOW)
    assert "if no layer forgot anything" in dict(shown.facts)["one request"]
    assert "<table" in html.render(shown)


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ([*QWEN, "--max-model-len", "0"], "--max-model-len is 0", "at least 1"),
        ([*QWEN, "--max-model-len", "-4"], "--max-model-len is -4", "at least 1"),
        ([*QWEN, "--max-model-len", "50000"], "takes 40,960 tokens at most", "--max-model-len 40960"),
        ([*QWEN, "--concurrency", "0"], "--concurrency is 0", "at least 1"),
        ([*QWEN, "--tp-size", "0"], "--tp-size is 0", "at least 1"),
        ([*QWEN, "--tp-size", "3"], "3 does not divide the 64 heads", "1, 2, 4, 8"),
        ([*QWEN, "--gpu", "H1000"], "unknown GPU 'H1000'", "did you mean"),
        ([*QWEN, "--quantization", "awk"], "unknown quantization 'awk'", "did you mean 'awq'?"),
        ([*QWEN, "--gpu-memory-utilization", "0"], "--gpu-memory-utilization is 0", "a share"),
        ([*QWEN, "--gpu-memory-utilization", "nan"], "--gpu-memory-utilization is nan", "a share"),
        ([*QWEN, "--kv-cache-dtype", "int8"], "unknown value for --kv-cache-dtype", "known: auto, fp8"),
        (["--model", "Qwen/Qwen3-32B-AWQ", "--quantization", "fp8"], "quantized with awq already", "leave out"),
        (["--model", "Qwen/Qwen9-1B"], "not in Tuna's own table", "a folder with its config.json"),
        (["--model", "no such"], "is neither a folder", "owner/name"),
        (["--model", "./nowhere"], "there is no config.json in ./nowhere", "downloaded"),
        ([], "required: --model", "`tuna fit --help`"),
    ],
    ids=lambda v: " ".join(v)[-30:] if isinstance(v, list) else None,
)  # fmt: skip
def test_a_mistake_is_two_lines_and_a_hint(tuna: Tuna, words: list[str], message: str, hint: str) -> None:
    done = tuna("fit", *words, code=2)
    assert done.out == ""
    said, advice = done.err.splitlines()
    assert message in said
    assert hint in advice


def test_offline_it_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from tuna_nb.frontends.terminal import main\n"
        f"assert main({['fit', *QWEN]!r}) == 0\n"
        "print(chr(10).join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {line.partition(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"pandas", "huggingface_hub", "httpx", "plotly", "sqlalchemy", "IPython"}
