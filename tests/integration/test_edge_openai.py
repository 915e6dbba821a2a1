"""The official client against the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from perdure.agent.durable import DurableAgent
from perdure.agent.tools import tool
from perdure.edge.openai_common import Spoken
from perdure.llm.types import ModelReply
from perdure.testing import Call, ScriptedModel
from tests.edge_support import Web, web
from tests.platform import in_process
from tests.support import eventually

WORDS = [f"word{number} " for number in range(12)]


class Speaker:
    """Says its words one by one; with a `gate` it waits in the middle."""

    def __init__(self) -> None:
        self.gate: asyncio.Event | None = None
        self.requests: list[Any] = []

    async def complete(self, request: Any, *, on_delta: Any = None) -> ModelReply:
        self.requests.append(request)
        for at, word in enumerate(WORDS):
            if on_delta is not None:
                on_delta(0, word)
            if at == 6 and self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(0.03)  # pieces that come together are sent together
        return ModelReply("".join(WORDS), "answer", model="speaker", provider="test", input_tokens=11, output_tokens=12)


@tool
async def lookup(order: str) -> str:
    """The status of an order."""
    return f"{order} is on its way"


@pytest.fixture
def speaker() -> Speaker:
    return Speaker()


@pytest.fixture
async def door(settings, nc, speaker: Speaker) -> AsyncIterator[Web]:
    clerk = DurableAgent(
        name="clerk", tools=[lookup], model=ScriptedModel(Call("lookup", {"order": "A7"}), "A7 is on its way.", "Yes.")
    )
    agents = (DurableAgent(name="speaker", model=speaker), clerk, DurableAgent(name="broken", model=ScriptedModel()))
    async with in_process(settings, nc, *agents) as platform, web(settings, platform) as made:
        yield made


@pytest.fixture
async def client(door: Web) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{door.gateway.server.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as made:
        yield made


async def test_agents_are_models_and_answer_a_chat_with_what_it_cost(door: Web, client: openai.AsyncOpenAI):
    assert [model.id async for model in client.models.list()] == ["broken", "clerk", "speaker"]
    assert (await client.models.retrieve("clerk")).owned_by == "perdure"
    said = await client.chat.completions.create(model="clerk", messages=[{"role": "user", "content": "Where is A7?"}])
    assert said.choices[0].message.content == "A7 is on its way."
    assert said.choices[0].finish_reason == "stop"
    assert said.usage.prompt_tokens == 2  # two calls of the model, one token each
    assert said.usage.total_tokens == 4
    steps = [step["name"] for step in said.perdure["steps"]]
    assert steps.count("model") == 2
    assert any("lookup" in name for name in steps)


async def test_a_chat_is_streamed_word_by_word_with_its_usage(client: openai.AsyncOpenAI):
    pieces, usage = [], None
    stream = await client.chat.completions.create(
        model="speaker",
        messages=[{"role": "user", "content": [{"type": "text", "text": "Speak."}]}],
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        usage = chunk.usage or usage
        pieces += [choice.delta.content for choice in chunk.choices if choice.delta.content]
    assert "".join(pieces) == "".join(WORDS)
    assert len(pieces) > 3
    assert (usage.prompt_tokens, usage.completion_tokens) == (11, 12)


async def test_what_was_said_before_is_told_unless_the_conversation_is_kept_here(
    client: openai.AsyncOpenAI, speaker: Speaker
):
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "I am Ada."},
        {"role": "assistant", "content": "Hello, Ada."},
        {"role": "user", "content": "Who am I?"},
    ]
    await client.chat.completions.create(model="speaker", messages=messages)
    told = str(speaker.requests[-1].messages)
    assert "I am Ada." in told
    assert "Be brief." in told
    for _ in range(2):
        await client.chat.completions.create(model="speaker", messages=messages, metadata={"session_id": "talk"})
    kept = [message["role"] for message in speaker.requests[-1].messages]
    assert kept == ["system", "user", "assistant", "user"]
    assert "I am Ada." not in str(speaker.requests[-1].messages)


async def test_responses_go_on_from_one_another(client: openai.AsyncOpenAI, door: Web):
    first = await client.responses.create(model="clerk", input="Where is A7?")
    assert (first.status, first.output_text) == ("completed", "A7 is on its way.")
    assert first.usage.input_tokens == 2
    second = await client.responses.create(model="clerk", input="Sure?", previous_response_id=first.id)
    assert second.output_text == "Yes."
    assert second.previous_response_id == first.id
    assert (await client.responses.retrieve(second.id)).output_text == "Yes."
    history = await door.get(f"/history/{first.metadata['session_id']}")
    assert [each["content"] for each in history["history"] if each["role"] == "user"] == ["Where is A7?", "Sure?"]


async def test_a_response_in_the_background_is_cut_off_and_read_on_at_another_gateway(
    settings, door: Web, client: openai.AsyncOpenAI, speaker: Speaker
):
    speaker.gate = asyncio.Event()
    stream = await client.responses.create(model="speaker", input="Speak.", background=True, stream=True)
    seen: list[Any] = []
    async for event in stream:
        seen.append(event)
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    response_id = seen[0].response.id
    assert (await client.responses.retrieve(response_id)).status == "in_progress"
    speaker.gate.set()

    async def over() -> bool:
        return (await client.responses.retrieve(response_id)).status == "completed"

    await eventually(over)
    async with (
        web(settings, gateway_port=0) as other,
        openai.AsyncOpenAI(base_url=f"{other.gateway.server.url}/v1", api_key="none") as second,
    ):
        more = await second.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number)
        rest = [event async for event in more]
        whole = [event async for event in await second.responses.retrieve(response_id, stream=True)]
    assert [event.sequence_number for event in [*seen, *rest]] == [event.sequence_number for event in whole]
    assert [event.type for event in [*seen, *rest]] == [event.type for event in whole]
    assert "".join(each.delta for each in whole if each.type == "response.output_text.delta") == "".join(WORDS)
    assert whole[-1].type == "response.completed"
    assert whole[-1].response.output_text == "".join(WORDS)
    numbers = [event.sequence_number for event in whole]
    assert numbers == sorted(set(numbers))


async def test_a_response_in_the_background_is_cancelled(client: openai.AsyncOpenAI, speaker: Speaker):
    speaker.gate = asyncio.Event()
    made = await client.responses.create(model="speaker", input="Speak.", background=True)
    assert made.status in ("queued", "in_progress")
    await eventually(lambda: speaker.requests)
    assert (await client.responses.cancel(made.id)).status == "cancelled"


async def test_what_goes_wrong_is_an_error_of_the_client(client: openai.AsyncOpenAI, door: Web):
    user: Any = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.NotFoundError, match="no model"):
        await client.chat.completions.create(model="nobody", messages=user)
    with pytest.raises(openai.BadRequestError, match="last message"):
        await client.chat.completions.create(model="clerk", messages=[{"role": "assistant", "content": "x"}])
    image: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]
    with pytest.raises(openai.BadRequestError, match="text alone"):
        await client.chat.completions.create(model="clerk", messages=image)
    with pytest.raises(openai.BadRequestError, match="tools"):
        await client.chat.completions.create(
            model="clerk", messages=user, tools=[{"type": "function", "function": {"name": "x"}}]
        )
    with pytest.raises(openai.UnprocessableEntityError, match="script") as failed:
        await client.chat.completions.create(model="broken", messages=user)
    assert failed.value.code == "run_failed"
    stream = await client.chat.completions.create(model="broken", messages=user, stream=True)
    with pytest.raises(openai.APIError, match="script"):
        async for _ in stream:
            pass
    assert (await client.responses.create(model="broken", input="hello")).status == "failed"
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve("resp_nothing")
    with pytest.raises(openai.NotFoundError):
        await client.responses.create(model="clerk", input="x", previous_response_id="resp_nothing")


def test_the_pieces_of_a_stream_add_up_to_the_answer_whatever_is_lost():
    whole = Spoken()
    said = [whole.delta({"piece": n, "text": text}) for n, text in enumerate(("Hel", "lo"))]
    assert "".join(said) + whole.rest("Hello") == "Hello"
    gap = Spoken()
    assert [gap.delta({"piece": n, "text": text}) for n, text in ((0, "He"), (2, "o"), (3, "!"))] == ["He", "", ""]
    assert gap.rest("Hello!") == "llo!"
    broken = Spoken()
    broken.delta({"piece": 0, "text": "Wrong"})
    assert broken.delta({"piece": 1, "text": "", "reset": True}) == ""
    assert broken.delta({"piece": 0, "text": "Right"}) == "\n\nRight"
    assert broken.rest("Right.") == "."
    none = Spoken()
    assert none.rest("All of it") == "All of it"
