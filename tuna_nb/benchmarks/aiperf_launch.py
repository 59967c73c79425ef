"""Begins aiperf inside its own environment; run by path there, so it imports nothing of Tuna.

What it shall do comes as a line of JSON on stdin: the headers that open the endpoint are then in no process list.
Only the standard library is imported before that, and aiperf itself after.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from typing import Any


def main() -> None:
    told = json.loads(sys.stdin.readline())
    headers: dict[str, str] = told["headers"]
    _make_tokenizer(told["tokenizer"])
    _call_secret(headers)
    sent = [word for name, value in headers.items() for word in ("--header", f"{name}:{value}")]
    sys.argv = ["aiperf", *told["argv"], *sent]
    importlib.import_module("aiperf.cli").app()


def _make_tokenizer(folder: str) -> None:
    """One of two words: aiperf wants to load one, though the engine's own counts are used; nothing is fetched."""
    if os.path.exists(os.path.join(folder, "tokenizer.json")):
        return
    tokenizers: Any = importlib.import_module("tokenizers")
    transformers: Any = importlib.import_module("transformers")
    unknown = "[UNK]"
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({unknown: 0, "word": 1}, unk_token=unknown))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token=unknown, eos_token=unknown
    ).save_pretrained(folder)


def _call_secret(headers: dict[str, str]) -> None:
    """aiperf writes its command line into its report, without the headers that it knows to be keys. Some providers'
    keys are in headers that it does not know (aiperf 0.13.0)."""
    redact: Any = importlib.import_module("aiperf.common.redact")
    if not headers or not hasattr(redact, "_CLI_SECRET_PATTERNS"):
        return
    names = "|".join(re.escape(name) for name in headers)
    redact._SENSITIVE_HEADER_NAMES = redact._SENSITIVE_HEADER_NAMES | {name.lower() for name in headers}
    pattern = re.compile(rf"(--header\s+)'?(?i:{names}):[^']*'?")
    redact._CLI_SECRET_PATTERNS = (pattern, *redact._CLI_SECRET_PATTERNS)


if __name__ == "__main__":
    main()
