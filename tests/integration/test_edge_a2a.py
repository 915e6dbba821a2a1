"""The official client of A2A against the gateway."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from a2a.types import CancelTaskRequest, GetTaskRequest, SubscribeToTaskRequest, TaskState
from a2a.utils.errors import A2AError, InvalidParamsError
from google.protobuf.json_format import MessageToDict

from perdure.edge import keys
from perdure.edge.keys import pepper
from tests.a2a_support import Clerk, Other, all_of, client, saying
from tests.edge_support import Web, problem, web
from tests.platform import in_process
from tests.support import eventually


@pytest.fixture
async def door(settings, nc):
    async with in_process(settings, nc, Clerk, Other) as platform, web(settings, platform) as made:
        yield made


async def test_a_message_is_a_run_and_the_same_message_again_the_same_run(door: Web):
    async with client(door, streaming=False) as made:
        (said,) = await all_of(made.send_message(saying("m-1", text="hello", context_id="talk")))
        assert said.task.status.state == TaskState.TASK_STATE_COMPLETED
        assert said.task.context_id == "talk"
        assert said.task.artifacts[0].parts[0].text == "heard hello in talk"
        (again,) = await all_of(made.send_message(saying("m-1", text="hello", context_id="talk")))
        assert again.task.id == said.task.id
        assert [run["run_id"] for run in (await door.get("/runs"))["runs"]] == [said.task.id]
        (data,) = await all_of(made.send_message(saying("m-2", data={"n": 21})))
        assert MessageToDict(data.task.artifacts[0].parts[0].data) == {"doubled": 42}
        found = await made.get_task(GetTaskRequest(id=data.task.id))
        assert found.status.state == TaskState.TASK_STATE_COMPLETED
        (failed,) = await all_of(made.send_message(saying("m-3", data={"n": 1, "breaks": True})))
        assert failed.task.status.state == TaskState.TASK_STATE_FAILED
        assert "no such luck" in failed.task.status.message.parts[0].text
        for wrong in (saying("m-4", text=" "), saying("m-5", text="x", context_id="a b"), saying("m-1", text="other")):
            with pytest.raises(A2AError, match=r"invalid_request|conflict"):
                await all_of(made.send_message(wrong))
        with pytest.raises(A2AError, match="contextId"):
            await all_of(made.send_message(saying("m-6", text="more", task_id=found.id)))
        with pytest.raises(A2AError, match="not_found"):
            await made.get_task(GetTaskRequest(id="nope"))
    async with client(door, agent="other") as made:
        with pytest.raises(A2AError, match="not_found"):
            await made.get_task(GetTaskRequest(id=found.id))
    assert 'route="/a2a/{agent}",status="200"' in (await door.http.get("/metrics")).text


async def test_a_task_is_streamed_subscribed_to_again_and_cancelled(door: Web):
    async with client(door) as made:
        events = await all_of(made.send_message(saying("s-1", data={"n": 4})))
        assert events[0].HasField("task")
        assert "double is done" in [e.status_update.status.message.parts[0].text for e in events if e.HasField("status_update") and e.status_update.status.message.parts]  # fmt: skip  # noqa: E501
        assert MessageToDict(events[-2].artifact_update.artifact.parts[0].data) == {"doubled": 8}
        assert events[-1].status_update.status.state == TaskState.TASK_STATE_COMPLETED

        stream = made.send_message(saying("s-2", data={"n": 5, "wait": True}))
        task_id = (await anext(stream)).task.id
        await stream.aclose()  # a stream that is cut leaves its task alone
        following = asyncio.create_task(all_of(made.subscribe(SubscribeToTaskRequest(id=task_id))))
        await eventually(lambda: door.gateway.door.load.streams == 1)
        await door.post(f"/runs/{task_id}/signal/go")
        events = await following
        assert events[0].task.id == task_id
        assert MessageToDict(events[-2].artifact_update.artifact.parts[0].data) == {"doubled": 10}
        with pytest.raises(A2AError, match="has ended"):
            await all_of(made.subscribe(SubscribeToTaskRequest(id=task_id)))

        stream = made.send_message(saying("s-3", data={"n": 5, "wait": True}))
        task_id = (await anext(stream)).task.id
        rest = asyncio.create_task(all_of(stream))
        cancelled = await made.cancel_task(CancelTaskRequest(id=task_id))
        assert cancelled.status.state == TaskState.TASK_STATE_CANCELED
        assert (await rest)[-1].status_update.status.state == TaskState.TASK_STATE_CANCELED
        with pytest.raises(A2AError):
            await made.cancel_task(CancelTaskRequest(id=task_id))
    await eventually(lambda: door.gateway.door.load.streams == 0)


async def test_with_several_agents_the_platform_has_a_card_and_a_message_names_its_agent(door: Web):
    card = await door.get("/.well-known/agent-card.json")
    assert (card["name"], card["url"]) == ("perdure", f"{door.gateway.server.url}/a2a")
    skills = [(each["id"], each["name"]) for each in card["skills"]]
    assert skills == [("clerk", "clerk"), ("other", "other")]
    assert card["skills"][0]["description"] == "Doubles numbers."
    async with client(door, agent=None, streaming=False) as made:
        (said,) = await all_of(made.send_message(saying("m-1", text="hi", context_id="t", metadata={"agent": "clerk"})))
        assert said.task.artifacts[0].parts[0].text == "heard hi in t"
        (other,) = await all_of(made.send_message(saying("m-2", text="hi", params_metadata={"agent": "other"})))
        assert other.task.artifacts[0].parts[0].text == "hi"
        for task in (said.task.id, other.task.id):
            assert (await made.get_task(GetTaskRequest(id=task))).id == task
        both = {"metadata": {"agent": "clerk"}, "params_metadata": {"agent": "other"}}
        for number, (wrong, why) in enumerate(
            (
                ({}, "name the agent; here are: clerk, other"),
                ({"metadata": {"agent": "a.b"}}, "agent name"),
                ({"metadata": {"agent": 7}}, "the name of one agent"),
                (both, "the name of one agent"),
            )
        ):
            with pytest.raises(InvalidParamsError, match=f"field 'metadata.agent': .*{why}"):
                await all_of(made.send_message(saying(f"w-{number}", text="x", **wrong)))
        assert len((await door.get("/runs"))["runs"]) == 2
    # the same message at the agent's own address is the same run
    async with client(door, streaming=False) as made:
        (again,) = await all_of(made.send_message(saying("m-1", text="hi", context_id="t")))
        assert again.task.id == said.task.id
    async with client(door, agent=None) as made:
        stream = made.send_message(saying("m-3", data={"n": 5, "wait": True}, metadata={"agent": "clerk"}))
        task = (await anext(stream)).task.id
        await stream.aclose()
        following = asyncio.create_task(all_of(made.subscribe(SubscribeToTaskRequest(id=task))))
        await eventually(lambda: door.gateway.door.load.streams == 1)
        cancelled = await made.cancel_task(CancelTaskRequest(id=task))
        assert cancelled.status.state == TaskState.TASK_STATE_CANCELED
        assert (await following)[-1].status_update.status.state == TaskState.TASK_STATE_CANCELED
    part = {"kind": "text", "text": "hello"}
    message = {"kind": "message", "messageId": "old", "role": "user", "parts": [part], "metadata": {"agent": "other"}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": message}}
    assert (await door.post("/a2a", body))["result"]["artifacts"][0]["parts"][0]["text"] == "hello"


async def test_at_both_addresses_a_new_message_for_an_agent_that_is_away_is_refused(settings, nc):
    async with in_process(settings, nc, Other) as platform, web(settings, platform) as door:
        clerk = await platform.agent(Clerk)

        async def send(path: str, said: str) -> dict[str, Any]:
            message = {"messageId": said, "role": "ROLE_USER", "parts": [{"text": "hi"}], "contextId": "t"}
            message |= {"metadata": {"agent": "clerk"}} if path == "/a2a" else {}
            body = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": message}}
            answer: dict[str, Any] = await door.post(path, body, headers={"A2A-Version": "1.0"})
            return answer.get("error") or {key: answer["result"]["task"][key] for key in ("id", "artifacts")}

        taken = await send("/a2a", "m-1")
        await clerk.stop()
        for path in ("/a2a", "/a2a/clerk"):
            assert await send(path, "m-1") == taken
            refused = await send(path, f"m-2 {path}")
            assert refused["message"] == "unavailable: no process of an agent 'clerk' is up; here are: other"
        assert len((await door.get("/runs"))["runs"]) == 1


async def test_clients_of_0_3_are_answered(door: Web):
    part = {"kind": "text", "text": "hello"}
    message = {"kind": "message", "messageId": "old-1", "role": "user", "parts": [part], "contextId": "talk"}
    body = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": message}}
    said = (await door.post("/a2a/clerk", body))["result"]
    assert (said["kind"], said["status"]["state"]) == ("task", "completed")
    assert said["artifacts"][0]["parts"][0]["text"] == "heard hello in talk"
    card = await door.get("/a2a/clerk/.well-known/agent-card.json")
    assert card["url"] == f"{door.gateway.server.url}/a2a/clerk"
    assert card["description"] == "Doubles numbers."


async def test_the_door_is_behind_the_guard_and_tenants_see_their_own_alone(settings, nc):
    async with in_process(settings, nc, Clerk, Other) as platform, web(settings, platform, max_payload=100_000) as door:

        async def pieces():
            for _ in range(4):
                yield b"x" * 50_000

        for content in (b"x" * 200_000, pieces()):
            problem(await door.http.post("/a2a/clerk", content=content), "too_large", 413)
        under = await asyncio.to_thread(pepper, door.gateway.settings)

        async def key(**said: Any) -> str:
            return (await keys.create(door.gateway.pool, under, **{"name": "test", "role": "operator", **said})).key

        acme, evil = await key(tenant="acme"), await key(tenant="evil")
        viewer, narrow = await key(tenant="acme", role="viewer"), await key(agents=["other"])
        for method, path in (("GET", "/.well-known/agent-card.json"), ("POST", "/a2a/clerk"), ("POST", "/a2a")):
            problem(await door.http.request(method, path, json={}), "unauthorized", 401)
        async with client(door, acme, streaming=False) as made:
            (ours,) = await all_of(made.send_message(saying("m-1", text="hello")))
            assert ours.task.id.startswith("acme__")
        async with client(door, evil, streaming=False) as made:
            for unseen in (made.get_task(GetTaskRequest(id=ours.task.id)), made.cancel_task(CancelTaskRequest(id=ours.task.id))):  # fmt: skip  # noqa: E501
                with pytest.raises(A2AError, match="not_found"):
                    await unseen
            (theirs,) = await all_of(made.send_message(saying("m-1", text="another")))
            assert theirs.task.id.startswith("evil__")
        async with client(door, viewer, streaming=False) as made:
            assert (await made.get_task(GetTaskRequest(id=ours.task.id))).id == ours.task.id
            with pytest.raises(A2AError, match="forbidden"):
                await all_of(made.send_message(saying("m-2", text="hello")))
        headers = {"Authorization": f"Bearer {narrow}"}
        assert (await door.get("/.well-known/agent-card.json", headers=headers))["name"] == "other"
        async with client(door, acme, agent=None, streaming=False) as made:
            (whole,) = await all_of(made.send_message(saying("m-3", text="hello", metadata={"agent": "clerk"})))
            assert whole.task.id.startswith("acme__")
        async with client(door, evil, agent=None) as made:
            for task in (ours.task.id, whole.task.id):
                for unseen in (made.get_task(GetTaskRequest(id=task)), made.cancel_task(CancelTaskRequest(id=task))):
                    with pytest.raises(A2AError, match="not_found"):
                        await unseen
                with pytest.raises(A2AError, match="not_found"):
                    await all_of(made.subscribe(SubscribeToTaskRequest(id=task)))
        async with client(door, viewer, agent=None, streaming=False) as made:
            assert (await made.get_task(GetTaskRequest(id=whole.task.id))).id == whole.task.id
            with pytest.raises(A2AError, match="forbidden"):
                await all_of(made.send_message(saying("m-4", text="hello", metadata={"agent": "clerk"})))
        message = {"messageId": "m-5", "role": "ROLE_USER", "parts": [{"text": "x"}], "metadata": {"agent": "clerk"}}
        send = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": message}}
        unscoped = await key()
        run = await door.post("/agents/clerk/run", {"task": "x"}, headers={"Authorization": f"Bearer {unscoped}"})
        task = {"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {"id": run["run_id"]}}
        for body, said in ((task, "not_found"), (send, "forbidden: test may not use agent clerk")):
            answer = await door.post("/a2a", body, headers={**headers, "A2A-Version": "1.0"})
            assert said in answer["error"]["message"]
        problem(await door.http.post("/a2a/clerk", json={}, headers=headers), "forbidden", 403)
