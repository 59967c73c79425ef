"""Every flag that an engine is started with at a provider is one that vLLM's own parser takes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tuna_nb.backends import engine as engines
from tuna_nb.backends.base import Engine

pytestmark = pytest.mark.real_engine

PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

given = make_arg_parser(FlexibleArgumentParser(prog="vllm serve")).parse_args(sys.argv[1:])
kept = ("model_tag", "served_model_name", "host", "port", "max_model_len", "tensor_parallel_size", "dtype",
        "quantization", "enforce_eager")
print(json.dumps({name: getattr(given, name) for name in kept}))
"""


def parsed(python: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), "-c", PARSE, *words], capture_output=True, text=True, timeout=110)


def test_vllm_takes_the_command_line_and_means_the_same(vllm_python: Path) -> None:
    full = Engine("a/b", max_model_len=100, tp_size=2, dtype="half", quantization="awq", args=("--seed", "7"))
    program, verb, *words = engines.command(full)
    assert (program, verb) == ("vllm", "serve")
    done = parsed(vllm_python, words)
    assert done.returncode == 0, done.stderr[-400:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "model_tag": "a/b",
        "served_model_name": ["a/b"],
        "host": "0.0.0.0",
        "port": 8000,
        "max_model_len": 100,
        "tensor_parallel_size": 2,
        "dtype": "half",
        "quantization": "awq",
        "enforce_eager": True,
    }


def test_vllm_has_forgotten_the_flag_that_we_refuse(vllm_python: Path) -> None:
    done = parsed(vllm_python, ["a/b", "--disable-log-requests"])
    assert done.returncode == 2
    assert "unrecognized arguments: --disable-log-requests" in done.stderr
