from __future__ import annotations

import base64

import orjson
import pytest
from synadia_ai.agents import Agents, Attachment, ProtocolError, Query, ResponseChunk, StatusChunk

from perdure.agent.base import BaseAgent
from perdure.agent.durable import DurableAgent
from perdure.agent.prompt_wire import approves, read_envelope
from perdure.agent.tools import tool
from perdure.engine import Context, workflow
from perdure.errors import InvalidRequest
from perdure.llm.types import ModelReply
from perdure.testing import faults
from perdure.testing.faults import FaultServer
from perdure.testing.models import Call, ScriptedModel
from tests.integration.agent_support import spoken, transcript
from tests.platform import in_process
from tests.support import eventually


@pytest.fixture
async def agents(nc):
    client = Agents(nc=nc)
    yield client
    await client.close()


async def one(agents, name):
    async def found():
        return [each for each in await agents.discover(stall=0.2) if each.agent == name]

    [agent] = await eventually(found)
    return agent


async def answer(agent, text, **more):
    return [chunk async for chunk in agent.prompt(text, **more)]


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, ResponseChunk))


async def test_the_public_client_finds_an_agent_prompts_it_and_reads_its_status(settings, nc, pool, agents):
    desk = DurableAgent("my_desk", role="a clerk", model=ScriptedModel("hello Anna", "again"))
    async with in_process(settings, nc, desk):
        agent = await one(agents, "my-desk")
        assert (agent.owner, agent.session_name, agent.protocol_version) == ("perdure", "default", "0.3")
        assert agent.description == "a clerk"
        assert agent.prompt_endpoint.attachments_ok
        assert agent.prompt_endpoint.max_payload_bytes > 100_000
        chunks = await answer(agent, "I am Anna")
        assert isinstance(chunks[0], StatusChunk)
        assert text_of(chunks) == "hello Anna"
        assert text_of(await answer(agent, "and now?")) == "again"
        status = await agent.status()
        assert (status.agent, status.session, status.instance_id) == ("my-desk", "default", agent.instance_id)
    assert [role for role, _ in spoken(await transcript(pool, "default"))] == ["user", "assistant"] * 2


async def test_the_fifth_word_of_the_subject_is_the_session(settings, nc, pool, agents):
    async with in_process(settings, nc, DurableAgent("bob", model=ScriptedModel("one", "two"))):
        agent = await one(agents, "bob")
        assert text_of(await answer(agent, "x", subject="agents.prompt.bob.perdure.mine")) == "one"
        assert text_of(await answer(agent, "x", subject="agents.prompt.bob.perdure.other")) == "one"
        assert text_of(await answer(agent, "x", subject="agents.prompt.bob.perdure.mine")) == "two"


async def test_an_agent_shows_signs_of_life(settings, nc, agents):
    heard = []

    async def keep(message):
        heard.append((message.subject, orjson.loads(message.data)))

    await nc.subscribe("agents.hb.>", cb=keep)
    await nc.flush()
    async with in_process(settings, nc, DurableAgent("bob", model=ScriptedModel())):
        [(subject, beat), *_] = await eventually(lambda: heard)
    assert subject == "agents.hb.bob.perdure.default"
    assert beat["interval_s"] == 10


async def test_the_pieces_of_a_stream_are_together_the_answer(settings, nc, agents, monkeypatch):
    async with FaultServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        server.script(faults.cut("half an "), faults.answer("the whole answer"))
        async with in_process(settings, nc, DurableAgent("bob")):
            agent = await one(agents, "bob")
            assert text_of(await answer(agent, "x")).endswith("the whole answer")
            server.always(faults.answer("plain"))
            assert text_of(await answer(agent, "y")) == "plain"


async def test_text_attachments_reach_the_model_and_others_are_named(settings, nc, agents):
    model = ScriptedModel("seen")
    async with in_process(settings, nc, DurableAgent("bob", model=model)):
        agent = await one(agents, "bob")
        given = [
            Attachment.from_bytes("note.txt", b"remember the milk"),
            Attachment.from_bytes("../x.bin", b"\xff\x00"),
        ]
        await answer(agent, "read this", attachments=given)
    said = model.requests[0].messages[-1]["content"]
    assert "Attachment note.txt:\nremember the milk" in said
    assert "[attachment x.bin: 2 bytes that are no text]" in said


@pytest.mark.parametrize(("words", "paid"), [("yes, please", [7]), ("no, too much", [])])
async def test_a_call_that_needs_approval_is_a_query_which_the_client_answers(settings, nc, agents, words, paid):
    done = []

    @tool(requires_approval=True)
    async def pay(amount: int) -> str:
        """Pay."""
        done.append(amount)
        return "paid"

    def last(request):
        return request.messages[-1]["content"]

    model = ScriptedModel(Call("pay", {"amount": 7}), last)
    async with in_process(settings, nc, DurableAgent("bob", model=model, tools=[pay])) as platform:
        agent = await one(agents, "bob")
        said = []
        async for chunk in agent.prompt("pay"):
            if isinstance(chunk, Query):
                assert 'pay with {"amount":7}' in chunk.prompt
                await chunk.reply(words)
            elif isinstance(chunk, ResponseChunk):
                said.append(chunk.text)
        [kept] = (await platform.request("run.approvals", {"status": "any"}))["approvals"]
    assert done == paid
    assert kept["decided_by"] == "agent protocol"
    assert ("paid" in "".join(said)) == bool(paid)


async def test_a_run_that_fails_is_an_error_of_the_stream(settings, nc, agents):
    async with in_process(settings, nc, DurableAgent("bob", model=ScriptedModel())):
        agent = await one(agents, "bob")
        with pytest.raises(ProtocolError, match=r"500.*the script has 0 line"):
            await answer(agent, "x")


@pytest.mark.parametrize(
    "data", [b"", b"  ", b"{broken", b"{}", b'{"prompt": " "}', b'{"prompt": "x", "attachments": 7}', b"\xff"]
)
async def test_a_malformed_prompt_is_a_400_followed_by_the_end_of_the_stream(settings, nc, data):
    async with in_process(settings, nc, DurableAgent("bob", model=ScriptedModel())):
        inbox = nc.new_inbox()
        replies = await nc.subscribe(inbox)
        await nc.publish("agents.prompt.bob.perdure.default", data, reply=inbox)
        first = await replies.next_msg(timeout=10)
        last = await replies.next_msg(timeout=10)
    assert first.headers["Nats-Service-Error-Code"] == "400"
    assert (last.data, last.headers) == (b"", None)


class Adder(BaseAgent):
    name = "adder"

    @workflow
    async def run(self, ctx: Context, task: dict) -> dict:
        return {"sum": sum(task["numbers"])}


async def test_an_agent_without_a_model_takes_json_and_answers_with_json(settings, nc, agents):
    async with in_process(settings, nc, Adder):
        agent = await one(agents, "adder")
        assert orjson.loads(text_of(await answer(agent, '{"numbers": [1, 2]}'))) == {"sum": 3}


async def test_the_run_goes_on_when_its_client_goes_away(settings, nc, pool, agents):
    class Slow:
        async def complete(self, request, *, on_delta=None):
            return ModelReply("done", "answer")

    async with in_process(settings, nc, DurableAgent("bob", model=Slow())):
        await nc.publish("agents.prompt.bob.perdure.s", b"x", reply=nc.new_inbox())

        async def done():
            return await pool.fetchval("SELECT count(*) FROM runs WHERE status = 'completed'")

        await eventually(done)


def test_only_a_plain_yes_approves():
    assert all(approves(word) for word in ("yes", "Yes.", "OK, go", "approve"))
    assert not any(approves(word) for word in ("", "no", "maybe", "not ok", "yesterday", "y'all"))


def test_an_attachment_that_is_no_base64_is_refused():
    for content in ("%%%", "YQ", "Y Q=="):
        said = {"prompt": "x", "attachments": [{"filename": "a", "content": content}]}
        with pytest.raises(InvalidRequest, match=r"attachments\[0\]"):
            read_envelope(orjson.dumps(said))
    good = {"prompt": "x", "attachments": [{"filename": "a", "content": base64.b64encode(b"hi").decode()}]}
    assert read_envelope(orjson.dumps(good)).attachments == ["Attachment a:\nhi"]
