from __future__ import annotations

import pytest

from perdure.errors import RetryableError
from perdure.llm.client import ModelClient
from perdure.llm.offline import OfflineModel
from perdure.llm.responses import ResponsesAssembler, responses_body
from perdure.llm.types import ModelRequest, ModelSettings
from perdure.testing import faults
from perdure.testing.faults import FaultServer

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"what":"sea"}'}}


@pytest.fixture
async def offline():
    model = OfflineModel()
    yield ModelSettings("offline", await model.start(), "none", api="responses")
    await model.stop()


@pytest.fixture
async def client():
    made = ModelClient()
    yield made
    await made.close()


def user(text):
    return {"role": "user", "content": text}


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_conversation_with_a_tool_works_over_the_responses_protocol(offline, client, streamed):
    heard = []
    on_delta = (lambda _, text: heard.append(text)) if streamed else None
    system = {"role": "system", "content": "Your role: a clerk"}
    first = await client.complete(offline, ModelRequest([system, user("look at the sea")], [TOOL]), on_delta=on_delta)
    assert first.stop == "tools"
    assert [(call.name, call.arguments) for call in first.tool_calls] == [("look", '{"what":"sea"}')]
    done = [system, user("look at the sea"), {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    done.append({"role": "tool", "tool_call_id": "call_1", "content": "blue"})
    second = await client.complete(offline, ModelRequest(done, [TOOL]), on_delta=on_delta)
    assert "As a clerk: look says blue" in second.text
    assert second.output_tokens > 0
    assert not streamed or "".join(heard) == second.text


def test_the_request_says_all_that_a_chat_completion_says():
    request = ModelRequest(
        [{"role": "system", "content": "s"}, user("u"), {"role": "assistant", "content": "a", "tool_calls": [CALL]}],
        [TOOL],
        "look",
        parallel_tools=False,
        schema=("answer", {"type": "object"}),
    )
    said = responses_body(ModelSettings("m", "http://x", "k", temperature=0.1, max_tokens=5), request, stream=True)
    assert said["instructions"] == "s"
    assert said["input"] == [
        user("u"),
        {"role": "assistant", "content": "a"},
        {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": '{"what":"sea"}'},
    ]
    assert said["tools"][0]["name"] == "look"
    assert said["tool_choice"] == {"type": "function", "name": "look"}
    assert (said["max_output_tokens"], said["temperature"], said["parallel_tool_calls"]) == (5, 0.1, False)
    assert said["text"]["format"]["name"] == "answer"
    assert said["store"] is False


@pytest.mark.parametrize(
    ("response", "stop"),
    [
        ({"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]}, "refusal"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "output": []}, "length"),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}, "output": []}, "content_filter"),
        ({"output": [{"type": "function_call", "name": "look", "call_id": "c", "arguments": "{}"}]}, "tools"),
    ],
)
def test_each_kind_of_stop_is_told_apart(response, stop):
    assembler = ResponsesAssembler()
    assembler.take_whole(response)
    assert assembler.reply(provider="p", seconds=0).stop == stop


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b'{"output": "x"}',
        b'{"output": [1]}',
        b'{"output": []}',
        b'{"status": "failed", "error": {"message": "oh"}, "output": []}',
        b'{"output": [{"type": "message", "content": [7]}]}',
    ],
)
async def test_nonsense_is_retryable(client, body):
    async with FaultServer() as server:
        server.script(faults.raw(body))
        with pytest.raises(RetryableError):
            await client.complete(ModelSettings("m", server.url, "k", api="responses"), ModelRequest([user("x")]))
        assert server.asked[0].path == "/v1/responses"


async def test_a_stream_without_its_end_is_no_answer(client):
    async with FaultServer() as server:
        server.script(
            faults.raw(
                b'data: {"type":"response.output_text.delta","delta":"half"}\n\n', content_type="text/event-stream"
            )
        )
        with pytest.raises(RetryableError, match="ended before"):
            await client.complete(
                ModelSettings("m", server.url, "k", api="responses"),
                ModelRequest([user("x")]),
                on_delta=lambda *_: None,
            )
