"""Requests to a real engine process: what the wire contract cannot say because it is about words and time."""

from __future__ import annotations

import httpx
import openai
import pytest

from tuna_nb.backends.local.engine import tokenizer
from tuna_nb.backends.local.engine.vocabulary import FIRST_BYTE

from .engine_process import AT_ONCE, EngineProcess, client_of
from .sse import CHAT, TEXT, chat, stream


def test_a_plain_chat_is_a_few_sentences_and_ends_by_itself(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={"model": "tiny", "messages": [{"role": "user", "content": "Hello!"}]}).json()
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"].endswith(".")
    assert answer["usage"]["completion_tokens"] > 40


def test_the_openai_client_reads_streams_and_whole_answers(engine: EngineProcess) -> None:
    client = openai.OpenAI(base_url=f"{engine.url}/v1", api_key="any", max_retries=0)
    messages = [{"role": "user", "content": "hello"}]
    whole = client.chat.completions.create(model="tiny", messages=messages, temperature=0)  # type: ignore[call-overload]
    pieces = client.chat.completions.create(  # type: ignore[call-overload]
        model="tiny", messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(pieces)
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    )
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.total_tokens == whole.usage.total_tokens
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=messages)  # type: ignore[call-overload]


@pytest.mark.parametrize("flags", [(), ("--raw-bytes",)], ids=["ascii", "raw bytes"])
def test_a_greedy_stream_resumed_at_any_cut_by_ids_ends_as_if_it_had_not_been_cut(flags: tuple[str, ...]) -> None:
    with EngineProcess(*AT_ONCE, *flags) as engine, httpx.Client(base_url=engine.url, trust_env=False) as client:
        whole = stream(client, CHAT, **chat(max_tokens=39, return_token_ids=True, ignore_eos=True))
        prompt = whole.chunks[0]["prompt_token_ids"]
        assert len(whole.ids) == 39
        for cut in range(1, 39):
            body = {
                "prompt": prompt + whole.ids[:cut],
                "temperature": 0,
                "ignore_eos": True,
                "return_token_ids": True,
            }
            rest = stream(client, TEXT, max_tokens=39 - cut, **body)
            assert whole.ids[:cut] + rest.ids == whole.ids


def test_a_continued_message_goes_on_as_the_uncut_answer_at_any_cut(http: httpx.Client) -> None:
    whole = http.post(CHAT, json=chat(max_tokens=20, return_token_ids=True)).json()
    ids, text = whole["choices"][0]["token_ids"], whole["choices"][0]["message"]["content"]
    for cut in range(1, 20):
        head = tokenizer.decode(ids[:cut])
        messages = [{"role": "user", "content": "hello world"}, {"role": "assistant", "content": head}]
        body = {"messages": messages, "temperature": 0, "max_tokens": 20 - cut}
        rest = http.post(CHAT, json=body | {"continue_final_message": True, "add_generation_prompt": False}).json()
        assert head + rest["choices"][0]["message"]["content"] == text
        assert rest["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"] + cut


def test_text_lags_ids_by_the_stop_strings_length_and_catches_up(http: httpx.Client) -> None:
    result = stream(http, CHAT, **chat(max_tokens=6, return_token_ids=True, stop=["@@@@@"]))
    assert result.text == tokenizer.decode(result.ids)
    so_far = ""
    for place, choice in enumerate(result.choices[1:-1]):
        so_far += choice["delta"]["content"]
        assert len(so_far) == max(0, len(tokenizer.decode(result.ids[: place + 1])) - 4)


def test_a_stop_string_cuts_the_text_and_counts_its_ids(http: httpx.Client) -> None:
    free = stream(http, CHAT, **chat(max_tokens=20, return_token_ids=True))
    stop = free.text.split()[5]
    result = stream(http, CHAT, **chat(max_tokens=20, return_token_ids=True, stop=[stop]))
    assert result.finish == ("stop", stop)
    assert result.text == free.text[: free.text.index(stop)]
    assert tokenizer.decode(result.ids).endswith(stop)


@pytest.mark.parametrize(("flags", "leaks"), [((), True), (("--no-prompt-leak",), False)])
def test_a_prompt_of_ids_that_ends_inside_a_character_leaks_unless_switched_off(
    flags: tuple[str, ...], leaks: bool
) -> None:
    prompt = tokenizer.encode("secret") + [FIRST_BYTE + b for b in "😀".encode()[:2]]
    with EngineProcess(*AT_ONCE, "--raw-bytes", *flags) as engine:
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 4}
        answer = httpx.post(f"{engine.url}{TEXT}", json=body, trust_env=False).json()
    assert answer["choices"][0]["text"].startswith("secret") is leaks


def test_a_request_beyond_the_context_is_clamped_silently(http: httpx.Client) -> None:
    body = {"prompt": [300] * 2040, "temperature": 0, "max_tokens": 100, "ignore_eos": True}
    answer = http.post(TEXT, json=body).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 2048


def test_a_key_covers_v1_and_nothing_else() -> None:
    with EngineProcess(*AT_ONCE, "--api-key", "secret") as engine, client_of(engine) as client:
        refused = client.get("/v1/models")
        assert (refused.status_code, refused.json()) == (401, {"error": "Unauthorized"})
        assert client.get("/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200
        for path in ("/health", "/metrics", "/version", "/load"):
            assert client.get(path).status_code == 200
        assert client.post("/tokenize", json={"prompt": "a"}).status_code == 200


def test_deviations_of_other_engines_are_a_switch_each() -> None:
    flags = ("--omit-done", "--usage-in-last-chunk", "--reject-unknown-fields", "--no-token-ids")
    with EngineProcess(*AT_ONCE, *flags, "--stream-interval", "3") as engine, client_of(engine) as client:
        result = stream(client, CHAT, **chat(max_tokens=7, return_token_ids=True))
        assert not result.done
        assert result.chunks[-1]["usage"]["completion_tokens"] == 7
        assert result.ids == []
        # The role, the first token at once, then three at a time.
        assert len(result.chunks) == 4
        assert client.post(CHAT, json=chat(guided=1)).status_code == 422


def test_metrics_count_what_was_asked_and_answered() -> None:
    def value(text: str, series: str) -> float:
        return next(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(series))

    with EngineProcess(*AT_ONCE) as engine, httpx.Client(base_url=engine.url, trust_env=False) as client:
        usage = client.post(CHAT, json=chat(max_tokens=5)).json()["usage"]
        text = client.get("/metrics").text
    assert value(text, "vllm:prompt_tokens_total") == usage["prompt_tokens"]
    assert value(text, "vllm:generation_tokens_total") == 5
    assert value(text, 'vllm:request_success_total{engine="0",finished_reason="length"') == 1
    assert value(text, "vllm:time_to_first_token_seconds_count") == 1
    assert value(text, "vllm:inter_token_latency_seconds_count") == 4
    assert value(text, "vllm:num_requests_running") == 0
