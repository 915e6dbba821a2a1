"""Push notifications of A2A: from the outbox of ends, signed, to addresses that may be reached."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from a2a.types import (
    AuthenticationInfo,
    DeleteTaskPushNotificationConfigRequest,
    GetTaskPushNotificationConfigRequest,
    ListTaskPushNotificationConfigsRequest,
    SendMessageConfiguration,
    StreamResponse,
    TaskPushNotificationConfig,
    TaskState,
)
from a2a.utils.errors import A2AError
from aiohttp import web as http_server
from google.protobuf.json_format import MessageToDict, ParseDict

from perdure.webhooks import verify
from tests.a2a_support import Clerk, Other, all_of, client, saying
from tests.edge_support import Web, web
from tests.engine_support import until
from tests.platform import InProcess, in_process
from tests.support import eventually

TOKEN = "a token of the one who asks"


class Receiver:
    """A server of the client's."""

    def __init__(self) -> None:
        self.url = ""
        self.got: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.answers: list[int] = []

    async def handle(self, request: http_server.Request) -> http_server.Response:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        verify(headers.get("x-a2a-notification-token", TOKEN), headers, body)
        self.got.append((headers, orjson.loads(body)))
        return http_server.Response(status=self.answers.pop(0) if self.answers else 200)

    def tasks(self) -> list[Any]:
        """What was told, as the protocol's own types."""
        return [ParseDict(body, StreamResponse()).task for _, body in self.got]


@pytest.fixture
async def receiver():
    made = Receiver()
    app = http_server.Application()
    app.router.add_post("/hook", made.handle)
    runner = http_server.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    await http_server.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield made
    await runner.cleanup()


@asynccontextmanager
async def running(settings, nc, **changed: Any):
    said = settings.model_copy(update=changed)
    async with in_process(said, nc, Clerk, Other) as platform, web(said, platform) as door:
        yield platform, door


@pytest.fixture
async def both(settings, nc):
    async with running(settings, nc, callback_private=True) as made:
        yield made


def to(receiver: Receiver, **more: Any) -> TaskPushNotificationConfig:
    return TaskPushNotificationConfig(**{"url": receiver.url, "token": TOKEN, **more})


def told(push: TaskPushNotificationConfig) -> SendMessageConfiguration:
    return SendMessageConfiguration(return_immediately=True, task_push_notification_config=push)


async def test_whoever_asks_with_a_message_is_told_of_the_tasks_end_signed(
    both: tuple[InProcess, Web], receiver: Receiver
):
    _, door = both
    push = to(receiver, authentication=AuthenticationInfo(scheme="Bearer", credentials="theirs"))
    async with client(door, streaming=False) as made:
        (done,) = await all_of(made.send_message(saying("p-1", data={"n": 21}, configuration=told(push))))
        (broken,) = await all_of(
            made.send_message(saying("p-2", data={"n": 1, "breaks": True}, configuration=told(to(receiver))))
        )
        await eventually(lambda: len(receiver.got) == 2)
        # the same message again is the same run, and its end was told
        await all_of(made.send_message(saying("p-1", data={"n": 21}, configuration=told(push))))
    by_id = {task.id: task for task in receiver.tasks()}
    assert MessageToDict(by_id[done.task.id].artifacts[0].parts[0].data) == {"doubled": 42}
    assert by_id[done.task.id].status.state == TaskState.TASK_STATE_COMPLETED
    assert by_id[broken.task.id].status.state == TaskState.TASK_STATE_FAILED
    assert "no such luck" in by_id[broken.task.id].status.message.parts[0].text
    headers = next(headers for headers, body in receiver.got if body["task"]["id"] == done.task.id)
    assert headers["x-a2a-notification-token"] == TOKEN
    assert headers["authorization"] == "Bearer theirs"
    rows = await door.gateway.pool.fetch("SELECT state FROM callbacks")
    assert len(rows) == 2


async def test_a_receiver_that_fails_is_told_again_and_a_dead_scheduler_loses_no_notification(
    both: tuple[InProcess, Web], receiver: Receiver
):
    _, door = both
    pool = door.gateway.pool
    receiver.answers = [500]
    async with client(door, streaming=False) as made:
        await all_of(made.send_message(saying("p-1", text="hello", configuration=told(to(receiver)))))
    await eventually(lambda: pool.fetchval("SELECT last_error FROM callbacks WHERE next_try > clock_timestamp()"))
    await pool.execute("UPDATE callbacks SET next_try = now()")
    await eventually(lambda: pool.fetchval("SELECT state = 'delivered' FROM callbacks"))
    # as it is left behind by a scheduler that died after it had sent, and before it could say so
    await pool.execute("UPDATE callbacks SET state = 'due', next_try = now()")
    await eventually(lambda: len(receiver.got) == 3)
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1


async def test_configurations_of_a_task_are_made_listed_and_deleted(both: tuple[InProcess, Web], receiver: Receiver):
    platform, door = both
    async with client(door, streaming=False) as made:
        waiting = saying(
            "p-1", data={"n": 1, "wait": True}, configuration=SendMessageConfiguration(return_immediately=True)
        )
        (said,) = await all_of(made.send_message(waiting))
        task = said.task.id
        for config_id in ("one", "two", ""):
            kept = await made.create_task_push_notification_config(to(receiver, task_id=task, id=config_id))
            assert (kept.id, kept.url, kept.token) == (config_id or task, receiver.url, "")
        listed = await made.list_task_push_notification_configs(ListTaskPushNotificationConfigsRequest(task_id=task))
        assert {each.id for each in listed.configs} == {"one", "two", task}
        found = await made.get_task_push_notification_config(
            GetTaskPushNotificationConfigRequest(task_id=task, id="two")
        )
        assert found.url == receiver.url
        for config_id in ("two", "not there"):
            await made.delete_task_push_notification_config(
                DeleteTaskPushNotificationConfigRequest(task_id=task, id=config_id)
            )
        with pytest.raises(A2AError, match="not_found"):
            await made.get_task_push_notification_config(GetTaskPushNotificationConfigRequest(task_id=task, id="two"))
        await until(platform, task, "waiting")
        await platform.request("run.signal", {"run_id": task, "name": "go"})
        await eventually(lambda: len(receiver.got) == 2)
        # one that comes after the end is told of it at once
        await made.create_task_push_notification_config(to(receiver, task_id=task, id="late"))
        await eventually(lambda: len(receiver.got) == 3)
        assert {each.status.state for each in receiver.tasks()} == {TaskState.TASK_STATE_COMPLETED}
        for number in range(7):
            await made.create_task_push_notification_config(to(receiver, task_id=task, id=f"more-{number}"))
        with pytest.raises(A2AError, match="at most 10"):
            await made.create_task_push_notification_config(to(receiver, task_id=task, id="one-too-many"))


async def test_ids_that_are_the_same_when_they_are_joined_hide_no_notification(
    both: tuple[InProcess, Web], receiver: Receiver
):
    _, door = both
    async with client(door, streaming=False) as made:
        for task, config_id in (("r", "x_y"), ("r_x", "y")):
            await door.post("/agents/clerk/run", {"task": "hi", "run_id": task}, headers={"Prefer": "wait=30"})
            await made.create_task_push_notification_config(to(receiver, task_id=task, id=config_id))
        await eventually(lambda: {each.id for each in receiver.tasks()} == {"r", "r_x"})


async def test_clients_of_0_3_are_told_in_their_form(both: tuple[InProcess, Web], receiver: Receiver):
    _, door = both
    part = {"kind": "text", "text": "hello"}
    message = {"kind": "message", "messageId": "old-1", "role": "user", "parts": [part], "contextId": "talk"}
    push = {"url": receiver.url, "token": TOKEN}
    params = {"message": message, "configuration": {"pushNotificationConfig": push}}
    await door.post("/a2a/clerk", {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": params})
    await eventually(lambda: len(receiver.got) == 1)
    _, body = receiver.got[0]
    assert (body["kind"], body["status"]["state"]) == ("task", "completed")
    assert body["artifacts"][0]["parts"][0]["text"] == "heard hello in talk"


WRONG = [
    ({"url": "http://example.com/hook"}, "url"),
    ({"url": "https://127.0.0.1/hook"}, "url"),
    ({"url": "https://169.254.169.254/latest"}, "url"),
    ({"url": "https://[::ffff:10.0.0.1]/"}, "url"),
    ({"url": "file:///etc/passwd"}, "url"),
    ({"token": "short"}, "token"),
    ({"token": "with\r\nHost: another of them"}, "token"),
    ({"token": "whsec_this is no base64"}, "token"),
    ({"id": "a b"}, "id"),
    ({"authentication": AuthenticationInfo(scheme="Bearer\r\nX-Y", credentials="z")}, "authentication"),
]


async def test_what_cannot_be_told_is_refused_before_anything_is_started(settings, nc):
    async with running(settings, nc) as (_, door), client(door, streaming=False) as made:
        for wrong, field in WRONG:
            push = TaskPushNotificationConfig(**{"url": "https://example.com/hook", "token": TOKEN, **wrong})
            with pytest.raises(A2AError, match=f"field '{field}'"):
                await all_of(made.send_message(saying("p-1", text="hello", configuration=told(push))))
        assert (await door.get("/runs"))["runs"] == []
