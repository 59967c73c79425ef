"""What an engine does on the wire, described without its words, so that two engines can be compared.

`describe(base_url, model)` sends a fixed set of requests and returns plain JSON: for each the status, the kinds
of chunks in their order, the keys of each kind, reasons, invariants of usage and ids. No generated text, id,
time or token number is in it. Real vLLM and the stand-in must give the same description:

    python wire_contract.py http://127.0.0.1:8000 tiny > description.json

Two things are asked of the server: a context of 2048 tokens, and token id 2 as its EOS.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import httpx

CONTEXT = 2048
EOS = 2
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO: list[dict[str, str]] = [{"role": "user", "content": "hello world"}]

Json = dict[str, Any]


def describe(base_url: str, model: str) -> Json:
    """The wire behaviour of the engine at `base_url` (no path), which serves `model`."""
    with httpx.Client(base_url=base_url, timeout=60, trust_env=False) as client:
        return {
            "fixed": _fixed(client, model),
            "streams": {
                name: _stream(client, path, {"model": model, **body}) for name, (path, body) in STREAMS.items()
            },
            "answers": {
                name: _answer(client, path, {"model": model, **body}) for name, (path, body) in ANSWERS.items()
            },
            "errors": {name: _error(client, model, *case) for name, case in ERRORS.items()},
            "resume": _resume(client, model),
            "metrics": _metrics(client),
        }


_GREEDY: Json = {"temperature": 0, "max_tokens": 6}
_USAGE: Json = {"stream_options": {"include_usage": True}}
_RUNNING: Json = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
_IDS: Json = {"return_token_ids": True}
_END: Json = {"logit_bias": {str(EOS): 100}}
_CHAT: Json = {"messages": HELLO, **_GREEDY}
_TEXT: Json = {"prompt": "hello world", **_GREEDY}
_CONTINUED: Json = {
    "messages": [*HELLO, {"role": "assistant", "content": "the quick"}],
    "continue_final_message": True,
    "add_generation_prompt": False,
    **_GREEDY,
}

STREAMS: dict[str, tuple[str, Json]] = {
    "chat": (CHAT, _CHAT),
    "chat with usage": (CHAT, _CHAT | _USAGE),
    "chat with running usage": (CHAT, _CHAT | _RUNNING),
    "chat with ids": (CHAT, _CHAT | _IDS),
    "chat with ids and usage": (CHAT, _CHAT | _IDS | _USAGE),
    "chat of one token": (CHAT, _CHAT | _IDS | {"max_tokens": 1}),
    "chat with max_completion_tokens": (CHAT, {"messages": HELLO, "temperature": 0, "max_completion_tokens": 3}),
    "chat ended by EOS": (CHAT, _CHAT | _IDS | _USAGE | _END),
    "chat with ignored EOS": (CHAT, _CHAT | _IDS | _USAGE | _END | {"ignore_eos": True}),
    "chat with min_tokens": (CHAT, _CHAT | _IDS | _END | {"min_tokens": 4}),
    "chat ended by a stop id": (CHAT, _CHAT | _IDS | {"stop_token_ids": [EOS], "ignore_eos": True} | _END),
    "chat with two choices": (
        CHAT,
        _CHAT | _IDS | _USAGE | {"n": 2, "temperature": 1, "seed": 1, "ignore_eos": True},
    ),
    "chat continued": (CHAT, _CONTINUED | _IDS),
    "chat continued with echo": (CHAT, _CONTINUED | {"echo": True}),
    "chat with prompt text": (CHAT, _CHAT | {"return_prompt_text": True}),
    "completion": (TEXT, _TEXT),
    "completion with usage": (TEXT, _TEXT | _USAGE),
    "completion with running usage": (TEXT, _TEXT | _RUNNING),
    "completion with ids": (TEXT, _TEXT | _IDS),
    "completion with ids and usage": (TEXT, _TEXT | _IDS | _USAGE),
    "completion ended by EOS": (TEXT, _TEXT | _IDS | _USAGE | _END),
    "completion of ids": (TEXT, _TEXT | _IDS | {"prompt": [5, 6, 7]}),
    "completion with echo": (TEXT, _TEXT | {"echo": True}),
    "completion with echo of ids": (TEXT, _TEXT | _IDS | {"echo": True}),
    "completion with two choices": (TEXT, _TEXT | _IDS | {"n": 2, "temperature": 1, "seed": 1, "ignore_eos": True}),
    "completion with stream_interval": (TEXT, _TEXT | _IDS | {"stream_interval": 3}),
}

ANSWERS: dict[str, tuple[str, Json]] = {
    "chat": (CHAT, _CHAT),
    "chat with ids": (CHAT, _CHAT | _IDS),
    "chat ended by EOS": (CHAT, _CHAT | _IDS | _END),
    "chat with two choices": (CHAT, _CHAT | _IDS | {"n": 2, "temperature": 1, "seed": 1, "ignore_eos": True}),
    "chat continued": (CHAT, _CONTINUED | _IDS),
    "chat continued from the user": (
        CHAT,
        _CHAT | {"continue_final_message": True, "add_generation_prompt": False},
    ),
    "chat with prompt text": (CHAT, _CHAT | {"return_prompt_text": True}),
    "chat clamped to the context": (CHAT, {"messages": HELLO, "temperature": 0, "max_tokens": CONTEXT} | _END),
    "chat with an unknown field": (CHAT, _CHAT | {"no_such_field": 1}),
    "chat with an unknown role": (CHAT, _CHAT | {"messages": [{"role": "oracle", "content": "hello"}]}),
    "chat with an empty model name": (CHAT, _CHAT | {"model": ""}),
    "completion": (TEXT, _TEXT),
    "completion with ids": (TEXT, _TEXT | _IDS),
    "completion of several prompts": (TEXT, _TEXT | _IDS | {"prompt": ["hello", "world"]}),
    "completion of several id prompts": (TEXT, _TEXT | _IDS | {"prompt": [[5, 6], [7]]}),
    "completion ended by EOS": (TEXT, _TEXT | _IDS | _END),
    "completion with echo": (TEXT, _TEXT | {"echo": True}),
    "completion with echo of ids": (TEXT, _TEXT | _IDS | {"echo": True}),
    "completion with echo and nothing else": (TEXT, _TEXT | {"echo": True, "max_tokens": 0}),
    "completion with numbers as strings": (TEXT, _TEXT | {"max_tokens": "5", "temperature": "0"}),
    "completion with nulls": (
        TEXT,
        _TEXT | dict.fromkeys(("stop", "seed", "top_p", "stream_options", "logit_bias", "logprobs", "user")),
    ),
    "completion of a truncated prompt": (
        TEXT,
        _TEXT | _IDS | {"prompt": [5, 6, 7, 8], "truncate_prompt_tokens": 2},
    ),
    "completion with special tokens in its text": (TEXT, _TEXT | _IDS | _END | {"skip_special_tokens": False}),
    "chat with both maxima": (CHAT, _CHAT | {"max_completion_tokens": 2}),
    "chat with a message without content": (CHAT, _CHAT | {"messages": [{"role": "user"}]}),
    "completion without max_tokens": (TEXT, {"prompt": "hello", "temperature": 0, "ignore_eos": True}),
}

_LONG = [5] * (CONTEXT + 10)
ERRORS: dict[str, tuple[str, Json]] = {
    "max_tokens 0": (CHAT, _CHAT | {"max_tokens": 0}),
    "max_tokens -1": (CHAT, _CHAT | {"max_tokens": -1}),
    "max_tokens beyond the context": (CHAT, _CHAT | {"max_tokens": CONTEXT + 1}),
    "max_completion_tokens beyond the context": (CHAT, _CHAT | {"max_completion_tokens": CONTEXT + 1}),
    "negative temperature": (CHAT, _CHAT | {"temperature": -3}),
    "top_p 2": (CHAT, _CHAT | {"top_p": 2}),
    "logprobs 50": (TEXT, _TEXT | {"logprobs": 50}),
    "n 2 with temperature 0": (CHAT, _CHAT | {"n": 2}),
    "n 0": (CHAT, _CHAT | {"n": 0}),
    "min_tokens above max_tokens": (CHAT, _CHAT | {"min_tokens": 100}),
    "max_tokens is a word": (CHAT, _CHAT | {"max_tokens": "many"}),
    "temperature is a list": (CHAT, _CHAT | {"temperature": [1]}),
    "messages missing": (CHAT, _GREEDY),
    "messages is a string": (CHAT, _CHAT | {"messages": "hello"}),
    "stream_options without stream": (CHAT, _CHAT | _USAGE),
    "prompt missing": (TEXT, _GREEDY),
    "prompt empty": (TEXT, _TEXT | {"prompt": ""}),
    "prompt an empty list": (TEXT, _TEXT | {"prompt": []}),
    "prompt an object": (TEXT, _TEXT | {"prompt": {"a": 1}}),
    "prompt longer than the context": (TEXT, _TEXT | {"prompt": _LONG}),
    "prompt fills the context": (TEXT, _TEXT | {"prompt": _LONG[:CONTEXT]}),
    "prompt longer by characters": (TEXT, _TEXT | {"prompt": "hello " * 20000}),
    "token id out of vocabulary": (TEXT, _TEXT | {"prompt": [5, 10_000_000]}),
    "stop id out of vocabulary": (TEXT, _TEXT | {"stop_token_ids": [10_000_000]}),
    "logit_bias out of vocabulary": (TEXT, _TEXT | {"logit_bias": {"10000000": 1}}),
    "no messages": (CHAT, _CHAT | {"messages": []}),
    "message without role": (CHAT, _CHAT | {"messages": [{"content": "hello"}]}),
    "tools without a parser": (CHAT, _CHAT | {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    "no tools": (CHAT, _CHAT | {"tools": []}),
    "seed beyond 64 bits": (CHAT, _CHAT | {"seed": 2**70}),
    "prompts of words and ids": (TEXT, _TEXT | {"prompt": ["a", 5]}),
    "tokenize nothing": ("/tokenize", {}),
    "tokenize for an unknown model": ("/tokenize", {"model": "no-such-model", "prompt": "a"}),
    "detokenize nothing": ("/detokenize", {}),
    "detokenize words": ("/detokenize", {"tokens": ["a"]}),
    "stop is a number": (CHAT, _CHAT | {"stop": 5}),
    "stream is a word": (CHAT, _CHAT | {"stream": "maybe"}),
    "max_tokens with a fraction": (CHAT, _CHAT | {"max_tokens": 1.5}),
    "seed is a word": (CHAT, _CHAT | {"seed": "x"}),
    "logit_bias is a list": (CHAT, _CHAT | {"logit_bias": [1]}),
    "logit_bias of a word": (CHAT, _CHAT | {"logit_bias": {"word": 1}}),
    "prompt with a negative id": (TEXT, _TEXT | {"prompt": [-1]}),
    "prompts with an empty one": (TEXT, _TEXT | {"prompt": ["a", ""]}),
    "message is a string": (CHAT, _CHAT | {"messages": ["hello"]}),
    "top_logprobs without logprobs": (CHAT, _CHAT | {"top_logprobs": 2}),
    "presence_penalty 3": (CHAT, _CHAT | {"presence_penalty": 3}),
    "repetition_penalty 0": (CHAT, _CHAT | {"repetition_penalty": 0}),
    "top_k -2": (CHAT, _CHAT | {"top_k": -2}),
    "min_p 2": (CHAT, _CHAT | {"min_p": 2}),
    "stream_interval 0": (CHAT, _CHAT | {"stream_interval": 0}),
    "empty stop string": (CHAT, _CHAT | {"stop": [""]}),
    "unknown model": (CHAT, _CHAT | {"model": "no-such-model"}),
    "unknown model, streamed": (TEXT, _TEXT | {"model": "no-such-model", "stream": True}),
    "continue without add_generation_prompt": (CHAT, _CHAT | {"continue_final_message": True}),
    "continue and add_generation_prompt": (
        CHAT,
        _CHAT | {"continue_final_message": True, "add_generation_prompt": True},
    ),
}


def _keys(value: Any, path: str = "") -> list[str]:
    """Every key in order: nested ones as `a.b`, those in a list as `a[].b`, `= null` where that is the value."""
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in _keys(item, f"{path}.{key}" if path else key)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return _keys(value[0], f"{path}[]")
    kind = " = null" if value is None else " = []" if value == [] else ""
    return [path + kind]


def _kind(chunk: Json) -> str:
    if "error" in chunk:
        return "error"
    if not chunk["choices"]:
        return "usage"
    choice = chunk["choices"][0]
    if "role" in choice.get("delta", {}):
        return "role"
    return "finish" if choice["finish_reason"] is not None else "token"


def _stream(client: httpx.Client, path: str, body: Json) -> Json:
    chunks: list[Json] = []
    done = False
    after_done = other_lines = 0
    with client.stream("POST", path, json=body | {"stream": True}) as response:
        content_type = response.headers["content-type"]
        for line in response.iter_lines():
            if line.startswith("data: "):
                if done:
                    after_done += 1
                elif line == "data: [DONE]":
                    done = True
                else:
                    chunks.append(json.loads(line[6:]))
            elif line:
                other_lines += 1
    kinds = [_kind(chunk) for chunk in chunks]
    shapes: dict[str, list[Any]] = {}
    for kind, chunk in zip(kinds, chunks, strict=True):
        shape = _keys(chunk)
        if shape not in shapes.setdefault(kind, []):
            shapes[kind].append(shape)
    finishes = [c["choices"][0] for c, kind in zip(chunks, kinds, strict=True) if kind == "finish"]
    return {
        "status": response.status_code,
        "content type": content_type,
        "done": done,
        "events after [DONE]": after_done,
        "lines that are no data": other_lines,
        "order": _runs(kinds) if body.get("n", 1) == 1 else sorted(set(kinds)),
        "shapes": shapes,
        "id prefix": chunks[0]["id"].split("-")[0],
        "same id, time and model in all chunks": len({(c["id"], c["created"], c["model"]) for c in chunks}) == 1,
        "finish": sorted((f["finish_reason"], f["stop_reason"]) for f in finishes),
        "ids": _id_facts(chunks, body),
        "usage": _usage_facts(chunks, body),
    }


def _runs(kinds: list[str]) -> list[str]:
    """The order of kinds, each run of equal ones once."""
    return [kind for place, kind in enumerate(kinds) if place == 0 or kinds[place - 1] != kind]


def _id_facts(chunks: list[Json], body: Json) -> Json:
    if not body.get("return_token_ids"):
        return {}
    pieces = [c["choices"][0]["token_ids"] for c in chunks if c["choices"] and "token_ids" in c["choices"][0]]
    ids = [i for piece in pieces for i in piece or []]
    return {
        "count": len(ids),
        # An engine may put the tokens of two steps into one chunk when its client reads slowly.
        "every chunk has ids": all(pieces),
        "ends with EOS": ids[-1:] == [EOS],
    }


def _usage_facts(chunks: list[Json], body: Json) -> Json:
    """How usage adds up, without its numbers (those depend on the tokenizer)."""
    usages = [c["usage"] for c in chunks if c.get("usage")]
    if not usages:
        return {}
    last = usages[-1]
    counts = [u["completion_tokens"] for u in usages]
    return {
        "usage in every chunk": len(usages) == len(chunks),
        "starts with": counts[0],
        "counts up": counts == sorted(counts),
        "completion tokens": counts[-1],
        "total is the sum": all(u["total_tokens"] == u["prompt_tokens"] + u["completion_tokens"] for u in usages),
        "prompt is counted": last["prompt_tokens"] > 0,
    }


def _answer(client: httpx.Client, path: str, body: Json) -> Json:
    response = client.post(path, json=body)
    if response.status_code != 200:
        return {"status": response.status_code, "body": response.json()}
    data = response.json()
    usage = data["usage"]
    choices = data["choices"]
    ids = [choice["token_ids"] for choice in choices]
    return {
        "status": response.status_code,
        "content type": response.headers["content-type"],
        "shape": _keys(data),
        "choices": [(c["index"], c["finish_reason"], c["stop_reason"]) for c in choices],
        "role": choices[0].get("message", {}).get("role"),
        "model is the served one": data["model"] == body["model"] or body["model"] == "",
        "completion tokens": usage["completion_tokens"] if body.get("max_tokens") != CONTEXT else None,
        "total is the sum": usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"],
        "ids are the completion": None if ids[0] is None else usage["completion_tokens"] == sum(map(len, ids)),
    }


def _error(client: httpx.Client, model: str, path: str, body: Json) -> Json:
    response = client.post(path, json={"model": model, **body})
    data = response.json()
    error = data.get("error", {})
    return {
        "status": response.status_code,
        "shape": _keys(data),
        "type": error.get("type"),
        "param": error.get("param"),
        "code": error.get("code"),
        # The text of schema errors is pydantic's and not copied word for word; elsewhere only numbers differ.
        "message": None if error.get("type") == "Bad Request" else re.sub(r"\d+", "N", error.get("message", "")),
        "retry-after": response.headers.get("retry-after"),
    }


def _fixed(client: httpx.Client, model: str) -> Json:
    """Endpoints that take no generation, and bodies that are no request."""
    facts: Json = {}
    for path in ("/health", "/ping"):
        response = client.get(path)
        facts[path] = [response.status_code, len(response.content), response.headers.get("content-type")]
    for path in ("/version", "/load"):
        response = client.get(path)
        facts[path] = [response.status_code, response.json()]
    models = client.get("/v1/models").json()
    facts["/v1/models"] = _keys(models)
    facts["context"] = models["data"][0]["max_model_len"]
    tokens = client.post("/tokenize", json={"model": model, "prompt": "hello world"}).json()
    facts["/tokenize"] = _keys(tokens)
    facts["token count is the count"] = tokens["count"] == len(tokens["tokens"])
    strings = client.post("/tokenize", json={"model": model, "prompt": "hello", "return_token_strs": True}).json()
    facts["/tokenize with strings"] = _keys(strings)
    chat = client.post("/tokenize", json={"model": model, "messages": HELLO}).json()
    facts["/tokenize of messages"] = _keys(chat)
    facts["/detokenize"] = client.post("/detokenize", json={"model": model, "tokens": tokens["tokens"]}).json()
    unknown = client.get("/no-such-path")
    facts["unknown path"] = [unknown.status_code, unknown.json()]
    for name, method, path in (
        ("GET chat", "GET", CHAT),
        ("HEAD health", "HEAD", "/health"),
        ("POST health", "POST", "/health"),
        ("POST ping", "POST", "/ping"),
        ("a slash too many", "GET", "/v1/models/"),
        ("one model", "GET", "/v1/models/tiny"),
    ):
        response = client.request(method, path)
        headers = {k: v for k, v in response.headers.items() if k in ("allow", "content-type", "server", "vary")}
        facts[name] = [response.status_code, response.text, headers]
    broken = client.post(CHAT, content=b'{"a": "\xff"}', headers={"content-type": "application/json"})
    facts["no UTF-8"] = [broken.status_code, broken.json()]
    out = client.post("/detokenize", json={"tokens": [99_999_999]})
    facts["detokenize out of vocabulary"] = [out.status_code, out.json()]
    for name, content, content_type in (
        ("no JSON", b"hello", "application/json"),
        ("an empty body", b"", "application/json"),
        ("a JSON list", b"[]", "application/json"),
        ("not declared as JSON", b"{}", "text/plain"),
    ):
        response = client.post(CHAT, content=content, headers={"content-type": content_type})
        error = response.json()["error"]
        # Where the parser gave up is told as `body.<position>`.
        param = error["param"] if name != "no JSON" else (error["param"] or "").split(".")[0]
        facts[name] = [response.status_code, error["type"], param, error["code"]]
    named = client.post(TEXT, json=_TEXT | {"model": model}, headers={"X-Request-Id": "my-request"})
    facts["id from X-Request-Id"] = [named.json()["id"], named.headers.get("x-request-id")]
    in_body = client.post(CHAT, json=_CHAT | {"model": model, "request_id": "my-request"})
    facts["id from the body"] = in_body.json()["id"]
    generated = client.post(CHAT, json=_CHAT | {"model": model}).json()
    facts["length of a generated id"] = len(generated["id"])
    fingerprint = generated["system_fingerprint"]
    facts["fingerprint"] = [fingerprint.split("-")[0], len(fingerprint.split("-")[-1])]
    return facts


def _resume(client: httpx.Client, model: str) -> Json:
    """Greedy answers continue exactly from their ids; seeded ones repeat; a stop string cuts text, not ids."""
    common: Json = {"model": model, "return_token_ids": True, "temperature": 0}
    whole = client.post(CHAT, json=common | {"messages": HELLO, "max_tokens": 24, "ignore_eos": True}).json()
    prompt, ids = whole["prompt_token_ids"], whole["choices"][0]["token_ids"]
    exact = 0
    for cut in range(1, 24, 4):
        body = common | {"prompt": prompt + ids[:cut], "max_tokens": 24 - cut, "ignore_eos": True}
        exact += client.post(TEXT, json=body).json()["choices"][0]["token_ids"] == ids[cut:]
    text = whole["choices"][0]["message"]["content"]
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    stopped = client.post(CHAT, json=common | {"messages": HELLO, "max_tokens": 24, "stop": [stop]}).json()
    choice = stopped["choices"][0]
    seeded = [
        client.post(TEXT, json={"model": model, "prompt": "hello", "seed": seed, "max_tokens": 12, **_IDS}).json()
        for seed in (1, 1, 2)
    ]
    drawn = [answer["choices"][0]["token_ids"] for answer in seeded]
    return {
        "resumed exactly": exact,
        "stop reason is the string": choice["stop_reason"] == stop and choice["finish_reason"] == "stop",
        "text ends before the stop string": choice["message"]["content"] == text[: text.find(stop)],
        "ids of the stop string are counted": stopped["usage"]["completion_tokens"] == len(choice["token_ids"])
        and choice["token_ids"] == ids[: len(choice["token_ids"])],
        "a seed repeats": drawn[0] == drawn[1],
        "another seed differs": drawn[0] != drawn[2],
    }


_NAMES = [
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_waiting_by_reason",
    "kv_cache_usage_perc",
    "engine_sleep_state",
    "prompt_tokens_total",
    "generation_tokens_total",
    "prompt_tokens_cached_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "num_preemptions_total",
    "request_success_total",
    "admission_rejections_total",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_inference_time_seconds",
    "iteration_tokens_total",
]


def _metrics(client: httpx.Client) -> Json:
    """For each metric that a router or a meter reads: its type, its labels, and a histogram's bounds."""
    response = client.get("/metrics")
    types: dict[str, str] = {}
    labels: dict[str, list[str]] = {}
    bounds: dict[str, list[str]] = {}
    for line in response.text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            types[name] = kind
        elif line.startswith("vllm:"):
            name, _, rest = line.partition("{")
            pairs = dict(part.split("=", 1) for part in rest.rpartition("}")[0].split(",") if "=" in part)
            if name.endswith("_bucket"):
                bounds.setdefault(name.removesuffix("_bucket"), []).append(pairs.pop("le").strip('"'))
            labels.setdefault(name, sorted(pairs))
    facts: Json = {"content type": response.headers["content-type"]}
    for short in _NAMES:
        name = f"vllm:{short}"
        facts[short] = {
            "type": types.get(name),
            "labels": labels.get(name) or labels.get(f"{name}_bucket"),
            "created": f"{name.removesuffix('_total')}_created" in labels or f"{name}_created" in labels,
            "bounds": bounds.get(name),
        }
    return facts


if __name__ == "__main__":
    json.dump(describe(sys.argv[1], sys.argv[2]), sys.stdout, indent=1)
    print()
