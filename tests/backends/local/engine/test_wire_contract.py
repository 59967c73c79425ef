"""The stand-in against what real vLLM did, request by request."""

from __future__ import annotations

import json
from pathlib import Path

from .engine_process import EngineProcess
from .wire_contract import describe

RECORDED = Path(__file__).with_name("vllm_0_32_wire.json")
"""Written by wire_contract.py from vLLM 0.32.0 on CPU: a random model of 358 tokens, --max-model-len 2048."""


def test_the_stand_in_does_on_the_wire_what_real_vllm_did(engine: EngineProcess) -> None:
    recorded = json.loads(RECORDED.read_text())
    described = json.loads(json.dumps(describe(engine.url, "tiny")))
    for part, expected in recorded.items():
        for name in expected:
            assert described[part][name] == expected[name], f"{part}: {name}"
    assert described == recorded
