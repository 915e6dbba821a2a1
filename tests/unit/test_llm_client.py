from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime

import pytest

from perdure.errors import PermanentError, RetryableError
from perdure.llm.client import ModelClient, body
from perdure.llm.errors import retry_after
from perdure.llm.types import ModelRequest, ModelSettings
from perdure.testing import faults
from perdure.testing.faults import FaultServer

KEY = "sk-very-secret-1234567890"
HELLO = ModelRequest([{"role": "user", "content": "hello"}])


@pytest.fixture
async def server():
    async with FaultServer() as running:
        yield running


@pytest.fixture
async def client():
    made = ModelClient()
    yield made
    await made.close()


def settings(server: FaultServer, **changes) -> ModelSettings:
    return ModelSettings(**{"model": "m", "base_url": server.url, "api_key": KEY, "timeout": 5.0, **changes})


@pytest.mark.parametrize("number", [400, 401, 403, 404, 413, 422])
async def test_a_refused_request_is_permanent_and_says_what_to_do(server, client, number):
    server.script(faults.status(number, f"no: {KEY}"))
    with pytest.raises(PermanentError, match=r"llm_|history_max") as told:
        await client.complete(settings(server), HELLO)
    assert str(number) in str(told.value)
    assert KEY not in str(told.value)


@pytest.mark.parametrize("number", [408, 409, 429, 500, 502, 503, 529])
async def test_a_passing_failure_is_retryable_after_the_time_that_the_server_names(server, client, number):
    server.script(faults.status(number, headers={"Retry-After": "7"}))
    with pytest.raises(RetryableError) as told:
        await client.complete(settings(server), HELLO)
    assert told.value.retry_after == 7.0
    assert len(server.asked) == 1, "the client itself must not try again"


async def test_a_used_up_quota_is_permanent_although_it_is_a_429(server, client):
    server.script(faults.status(429, "quota", code="insufficient_quota"))
    with pytest.raises(PermanentError, match="quota is used up"):
        await client.complete(settings(server), HELLO)


@pytest.mark.parametrize(
    "behaviour",
    [
        faults.raw(b"<html>hello</html>", content_type="text/html"),
        faults.raw(b"{not json"),
        faults.raw(b"[]"),
        faults.raw(b"{}"),
        faults.raw(b'{"choices": []}'),
        faults.raw(b'{"choices": [{"message": null}]}'),
        faults.raw(b'{"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}'),
        faults.raw(b'{"choices": [{"message": {"tool_calls": "x"}, "finish_reason": "stop"}]}'),
        faults.drop(),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_nonsense_is_retryable(server, client, behaviour, streamed):
    server.script(behaviour)
    with pytest.raises(RetryableError, match="model 'm' at"):
        await client.complete(settings(server), HELLO, on_delta=(lambda *_: None) if streamed else None)


@pytest.mark.parametrize("behaviour", [faults.cut("half an "), faults.cut("half an ", polite=True)])
async def test_half_a_stream_is_never_an_answer(server, client, behaviour):
    server.script(behaviour)
    with pytest.raises(RetryableError):
        await client.complete(settings(server), HELLO, on_delta=lambda *_: None)


async def test_a_stream_that_stalls_is_given_up_after_the_timeout(server, client):
    server.script(faults.stall("half an "))
    heard = []
    with pytest.raises(RetryableError, match=r"silent for 0\.2 s"):
        await client.complete(settings(server, timeout=0.2), HELLO, on_delta=lambda _, text: heard.append(text))
    assert heard == ["half an "]


async def test_a_server_that_is_not_there_is_retryable_and_named(server, client):
    await server.stop()
    with pytest.raises(RetryableError, match=re.escape(server.url) + ".*cannot be reached"):
        await client.complete(settings(server), HELLO)


async def test_a_new_key_is_used_on_the_next_call_while_the_old_call_goes_on(server, client):
    server.script(faults.answer("slow", delay=0.2), faults.answer("fast"))
    slow = asyncio.create_task(client.complete(settings(server), HELLO))
    fast = await client.complete(settings(server, api_key="another"), HELLO)
    assert (fast.text, (await slow).text) in {("fast", "slow"), ("slow", "fast")}
    assert sorted(asked.headers["authorization"] for asked in server.asked) == ["Bearer another", f"Bearer {KEY}"]


async def test_many_endpoints_do_not_keep_their_clients_for_ever(server, client):
    for number in range(20):
        await client.complete(settings(server, api_key=f"key-{number}"), HELLO)
    assert len(client._clients) <= 8


@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_length_and_refusal_are_told_apart(server, client, streamed):
    server.script(
        faults.answer(calls=[("look", {"a": 1}), ("see", "{broken")]),
        faults.answer("cut off", finish="length"),
        faults.answer(refusal="I will not"),
        faults.answer("", finish="content_filter"),
    )
    on_delta = (lambda *_: None) if streamed else None
    replies = [await client.complete(settings(server), HELLO, on_delta=on_delta) for _ in range(4)]
    assert [reply.stop for reply in replies] == ["tools", "length", "refusal", "content_filter"]
    assert [(call.name, call.arguments) for call in replies[0].tool_calls] == [("look", '{"a":1}'), ("see", "{broken")]
    assert (replies[0].input_tokens, replies[0].output_tokens) == (7, 3)
    assert replies[2].text == "I will not"


async def test_the_pieces_of_a_stream_come_in_order(client):
    from perdure.llm.offline import OfflineModel

    offline = OfflineModel()
    heard = []
    try:
        told = ModelRequest([{"role": "user", "content": " ".join(f"word{n}" for n in range(100))}])
        where = ModelSettings("offline", await offline.start(), "none")
        reply = await client.complete(where, told, on_delta=lambda at, text: heard.append((at, text)))
        plain = await client.complete(where, told)
    finally:
        await offline.stop()
    assert "".join(text for _, text in heard) == reply.text == plain.text
    assert [at for at, _ in heard] == list(range(len(heard)))
    assert len(heard) > 3


def test_what_is_not_configured_is_not_sent():
    plain = body(ModelSettings("m", "http://x/v1", "k"), HELLO, stream=False)
    assert plain == {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    full = body(
        ModelSettings("m", "https://api.openai.com/v1", "k", temperature=0.0, max_tokens=9),
        ModelRequest(HELLO.messages, [{"type": "function"}], "look", parallel_tools=False),
        stream=True,
    )
    assert full["temperature"] == 0.0
    assert full["max_completion_tokens"] == 9
    assert full["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    assert full["parallel_tool_calls"] is False


def test_retry_after_is_read_in_each_of_its_forms():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after({"retry-after": "3"}) == 3.0
    assert retry_after({"retry-after-ms": "250", "retry-after": "3"}) == 0.25
    assert retry_after({"retry-after": "Thu, 01 Jan 2026 00:00:09 GMT"}, now=now) == 9.0
    assert retry_after({"retry-after": "Thu, 01 Jan 2015 00:00:09 GMT"}, now=now) == 0.0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_settings_never_show_their_key():
    assert KEY not in repr(ModelSettings("m", "http://x", KEY, headers={"x": KEY}))
