"""What is asked: the bodies of requests, without end, the same for the same seed, byte for byte.

Synthetic text is made of short common English words, each counted as one token, its space with it: so they are
in vocabularies of a hundred thousand tokens (GPT-4o, Llama 3, Qwen). A chat template adds its own ten to
thirty. That is a good guess and no count: a figure of tokens comes from the engine's `usage`. Each prompt
begins with words of its own, so that no engine finds it in its prefix cache, and goes on in a long text that
all share.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tuna_nb.benchmarks.load import traces
from tuna_nb.benchmarks.load.arrivals import stream_of
from tuna_nb.benchmarks.load.spec import Lengths, LoadSpec, Target
from tuna_nb.errors import RequestError

TOKENS_PER_WORD: Final = 1.0
_WORDS: Final = """
the of and to in is you that it he was for on are as with his they at be this have from or one had by word but
not what all were we when your can said there use an each which she do how their if will up other about out many
then them these so some her would make like him into time has look two more write go see number no way could
people my than first water been call who oil its now find long down day did get come made may part over new
sound take only little work know place year live me back give most very after thing our just name good sentence
man think say great where help through much before line right too mean old any same tell boy follow came want
show also around form three small set put end does another well large must big even such because turn here why
ask went men read need land different home us move try kind hand picture again change off play spell air away
animal house point page letter mother answer found study still learn should world high every near add food
between own below country plant last school father keep tree never start city earth eye light thought head under
story saw left few while along might close something seem next hard open example begin life always those both
paper together got group often run
""".split()
_OWN_WORDS: Final = 4
"""Of each prompt, drawn for it alone: of 240 words, some three thousand million beginnings."""
_POOL_WORDS: Final = 1 << 15
_MOST_TOKENS: Final = 1_000_000
_MOST_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: the model that it asks, and its JSON body."""

    model: str
    body: bytes


@dataclass(frozen=True, slots=True)
class _Prompt:
    """content: text, or a chat's messages. most_tokens: what it may answer; None: as all."""

    content: str | Sequence[Mapping[str, Any]]
    most_tokens: int | None = None


def asks(spec: LoadSpec, purpose: str = "prompts") -> Iterator[Ask]:
    """The requests in order, without an end. purpose: another one is another stream of the same kind.

    Raises RequestError for prompts that can't be, before the first is asked for.
    """
    check(spec)
    rng, models = stream_of(spec.seed, purpose), stream_of(spec.seed, f"{purpose}/models")
    prefixes = [_Words(stream_of(spec.seed, f"prefix {n}")) for n in range(spec.prompts.prefixes)]
    found = _prompts(spec, rng)
    return _asks(spec, found, prefixes, stream_of(spec.seed, f"{purpose}/rest"), models)


def check(spec: LoadSpec) -> None:
    """Raises RequestError for prompts or a target that can't be."""
    prompts = spec.prompts
    if not spec.target.models:
        raise RequestError("no model was named", "give at least one")
    if prompts.kind not in ("synthetic", "file", "sharegpt", "trace"):
        raise RequestError(f"no prompts are called {prompts.kind!r}", "known: synthetic, file, sharegpt, trace")
    if prompts.kind in ("file", "sharegpt") and not prompts.path:
        raise RequestError("no file of prompts was named", "give its path")
    if prompts.kind == "trace" and not (prompts.path or spec.arrivals.trace):
        raise RequestError("no trace was named", "give the path of a CSV or JSONL file")
    for name, lengths in (("input", prompts.input_tokens), ("output", prompts.output_tokens)):
        if not (1 <= lengths.mean <= _MOST_TOKENS and 0 <= lengths.cv <= 10 and 1 <= lengths.least <= lengths.most):
            raise RequestError(
                f"{name} tokens: mean {lengths.mean:g}, cv {lengths.cv:g}, {lengths.least} to {lengths.most}",
                f"a mean of 1 to {_MOST_TOKENS:,}, a cv of 0 to 10, and a range that begins at 1 or above",
            )
    if not 0 <= prompts.shared_prefix_tokens <= _MOST_TOKENS:
        raise RequestError(f"a shared prefix of {prompts.shared_prefix_tokens} tokens", "it is 0 or more")
    if not 1 <= prompts.prefixes <= 10_000:
        raise RequestError(f"{prompts.prefixes} shared prefixes", "there are 1 to 10,000 of them")


def drawer(lengths: Lengths, rng: random.Random) -> Callable[[], int]:
    """Draws token counts: lognormal by its mean and coefficient of variation, cut to its range."""
    least, most = lengths.least, min(lengths.most, _MOST_TOKENS)
    if lengths.cv == 0:
        fixed = min(max(round(lengths.mean), least), most)
        return lambda: fixed
    variance = math.log(1 + lengths.cv**2)
    middle, spread = math.log(lengths.mean) - variance / 2, math.sqrt(variance)

    def draw() -> int:
        return min(max(round(math.exp(rng.gauss(middle, spread))), least), most)

    return draw


class _Words:
    """Text of so many words, cut out of one long text: no word is drawn while streams are being timed."""

    def __init__(self, rng: random.Random) -> None:
        words = rng.choices(_WORDS, k=_POOL_WORDS)
        self._text = " ".join(words) + " "
        ends = list(itertools.accumulate(len(word) + 1 for word in words))
        self._starts = [0, *ends[:-1]]
        self._ends = ends

    def text(self, words: int, start: int = 0) -> str:
        """So many words from the `start`-th on, and around again."""
        start %= _POOL_WORDS
        parts = []
        while words > 0:
            taken = min(words, _POOL_WORDS - start)
            parts.append(self._text[self._starts[start] : self._ends[start + taken - 1]])
            words -= taken
            start = 0
        return "".join(parts)


def _asks(
    spec: LoadSpec,
    found: Iterator[_Prompt],
    prefixes: list[_Words],
    rng: random.Random,
    models: random.Random,
) -> Iterator[Ask]:
    target, prompts = spec.target, spec.prompts
    length, draw = prompts.shared_prefix_tokens, drawer(prompts.output_tokens, rng)
    shared = [prefix.text(length) for prefix in prefixes] if length else [""]
    for prompt in found:
        model = models.choice(target.models) if len(target.models) > 1 else target.models[0]
        content = _prefixed(prompt.content, rng.choice(shared) if len(shared) > 1 else shared[0])
        drawn = draw()
        yield Ask(model, _body(target, model, content, prompt.most_tokens or drawn, prompts.ignore_eos))


def _prefixed(content: str | Sequence[Mapping[str, Any]], prefix: str) -> str | Sequence[Mapping[str, Any]]:
    if not prefix:
        return content
    return prefix + content if isinstance(content, str) else [{"role": "system", "content": prefix}, *content]


def _body(
    target: Target, model: str, content: str | Sequence[Mapping[str, Any]], most_tokens: int, ignore_eos: bool
) -> bytes:
    body: dict[str, Any] = {"model": model}
    if target.api == "chat":
        body["messages"] = [{"role": "user", "content": content}] if isinstance(content, str) else content
    else:
        body["prompt"] = content
    if target.stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    if "max_completion_tokens" not in target.extra:
        body["max_tokens"] = most_tokens
    if ignore_eos:
        body["ignore_eos"] = True
    return json.dumps({**body, **target.extra}, ensure_ascii=False, separators=(",", ":")).encode()


def _prompts(spec: LoadSpec, rng: random.Random) -> Iterator[_Prompt]:
    prompts = spec.prompts
    if prompts.kind == "synthetic":
        draw = drawer(prompts.input_tokens, rng)
        return (_Prompt(text) for text in _synthetic(spec, rng, iter(draw, None)))
    path = prompts.path or spec.arrivals.trace
    assert path is not None
    if prompts.kind == "trace":
        rows = traces.load(path)
        texts = _synthetic(spec, rng, (row.input_tokens for row in itertools.cycle(rows)))
        return (_Prompt(t, row.output_tokens) for t, row in zip(texts, itertools.cycle(rows), strict=False))
    if prompts.kind == "sharegpt":
        found = _sharegpt(path)
        rng.shuffle(found)
    else:
        found = _file(path, spec.target.api)
    return itertools.cycle(found)


def _synthetic(spec: LoadSpec, rng: random.Random, lengths: Iterator[int]) -> Iterator[str]:
    """A shared prefix counts as part of the prompt, which has at least its own words after it."""
    words = _Words(stream_of(spec.seed, "words"))
    for length in lengths:
        left = max(1, length - spec.prompts.shared_prefix_tokens)
        own = " ".join(rng.choices(_WORDS, k=min(_OWN_WORDS, left)))
        rest = words.text(left - _OWN_WORDS, rng.randrange(_POOL_WORDS)) if left > _OWN_WORDS else ""
        yield f"{own} {rest}".rstrip()


def _read(path: str) -> str:
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise RequestError(f"{path} is larger than 1 GiB", "cut a part out of it")
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RequestError(f"there is no file {path}", "give the path of a file of prompts") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} can't be read: {error}", "give the path of a file of prompts") from None


def _file(path: str, api: str) -> list[_Prompt]:
    """One prompt a line."""
    lines = [(number, line) for number, line in enumerate(_read(path).split("\n"), 1) if line.strip()]
    if not lines:
        raise RequestError(f"{path} has no prompts", "one prompt a line: JSON, or plain text")
    if lines[0][1].lstrip().startswith("{"):
        return [_of_json(path, number, line, api) for number, line in lines]
    return [_Prompt(line.strip()) for _, line in lines]


def _of_json(path: str, number: int, line: str, api: str) -> _Prompt:
    hint = 'a line is {"prompt": "..."} or {"messages": [...]}, and may have "max_tokens"'
    try:
        record = json.loads(line)
    except ValueError:
        raise RequestError(f"{path}, line {number}: it is no JSON", hint) from None
    most = record.get("max_tokens") if isinstance(record, dict) else None
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise RequestError(f"{path}, line {number}: max_tokens is {most!r}", hint)
    prompt = record.get("prompt") if isinstance(record, dict) else None
    messages = record.get("messages") if isinstance(record, dict) else None
    if isinstance(prompt, str) and prompt:
        return _Prompt(prompt, most)
    if isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages):
        if api != "chat":
            raise RequestError(f"{path}, line {number}: messages are a chat", "use the chat API for this file")
        return _Prompt(messages, most)
    raise RequestError(f"{path}, line {number}: it has no prompt and no messages", hint)


def _sharegpt(path: str) -> list[_Prompt]:
    """The first thing that a person says in each conversation."""
    hint = 'ShareGPT is a JSON list of {"conversations": [{"from": "human", "value": "..."}, ...]}'
    try:
        records = json.loads(_read(path))
    except ValueError:
        raise RequestError(f"{path} is no JSON", hint) from None
    found = []
    for record in records if isinstance(records, list) else []:
        turns = record.get("conversations", []) if isinstance(record, dict) else []
        said = [t.get("value") for t in turns if isinstance(t, dict) and t.get("from") in ("human", "user")]
        if said and isinstance(said[0], str) and said[0].strip():
            found.append(_Prompt(said[0]))
    if not found:
        raise RequestError(f"{path} has no conversation that a person begins", hint)
    return found
