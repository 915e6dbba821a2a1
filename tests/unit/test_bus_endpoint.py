from __future__ import annotations

import asyncio

import orjson
import pytest
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError

from perdure.bus import endpoint as endpoint_module
from perdure.bus.endpoint import Endpoint, Request
from perdure.errors import InvalidRequest, NotFound, RunSuspended
from tests.support import eventually


class FakeClient:
    """Keeps what is published."""

    max_payload = 1000

    def __init__(self):
        self.sent = {}
        self.headers = {}
        self.broken = False

    async def publish(self, subject, data, headers=None):
        if self.broken:
            raise ConnectionClosedError
        self.sent[subject] = orjson.loads(data)
        self.headers[subject] = headers


@pytest.fixture
def client():
    return FakeClient()


def make(client, handler, *, concurrency=2, patience=60.0):
    return Endpoint(client, "test", "test.it", handler, queue="q", concurrency=concurrency, patience=patience)


def message(reply, data=b"{}"):
    return Msg(_client=None, subject="test.it", reply=reply, data=data)


def deadline(seconds=10.0):
    return asyncio.get_running_loop().time() + seconds


async def test_a_slow_handler_does_not_hold_up_the_next_message(client):
    gate = asyncio.Event()

    async def handler(request):
        if request.json().get("slow"):
            await gate.wait()
        return {"done": True}

    it = make(client, handler)
    await it._arrived(message("slow", b'{"slow": 1}'))
    await it._arrived(message("fast"))
    await eventually(lambda: "fast" in client.sent)
    assert "slow" not in client.sent
    gate.set()
    await it.finish(deadline())
    assert client.sent["slow"] == {"done": True}


async def test_never_more_handlers_run_than_the_bound_allows(client):
    running = most = 0

    async def handler(_request):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running -= 1

    it = make(client, handler, concurrency=3)
    for number in range(50):
        await it._arrived(message(f"r{number}"))
    await it.finish(deadline())
    assert (most, len(client.sent)) == (3, 50)


async def test_a_request_that_finds_no_slot_in_time_is_refused_and_not_left_hanging(client):
    gate = asyncio.Event()

    async def handler(_request):
        await gate.wait()

    it = make(client, handler, concurrency=1, patience=0.01)
    await it._arrived(message("holds"))
    await it._arrived(message("waits"))
    await eventually(lambda: "waits" in client.sent)
    assert client.sent["waits"]["error"]["code"] == "rate_limited"
    assert client.headers["waits"]["Nats-Service-Error-Code"] == "429"
    gate.set()
    await it.finish(deadline())
    assert client.sent["holds"] == {}


async def test_a_full_line_refuses_at_once(client, monkeypatch):
    monkeypatch.setattr(endpoint_module, "LINE", 1)
    gate = asyncio.Event()

    async def handler(_request):
        await gate.wait()

    it = make(client, handler, concurrency=1)
    for reply in ("runs", "waits", "too-many"):
        await it._arrived(message(reply))
    assert client.sent["too-many"]["error"]["code"] == "rate_limited"
    gate.set()
    await it.finish(deadline())
    assert {"runs", "waits"} <= client.sent.keys()


async def test_a_broken_handler_tells_its_caller_nothing_of_the_exception(client):
    async def handler(_request):
        raise ValueError("postgresql://u:hunter2@db")

    it = make(client, handler)
    await it._arrived(message("r"))
    await it.finish(deadline())
    error = client.sent["r"]["error"]
    assert error["code"] == "internal"
    assert error["error_id"] in error["message"]
    assert "hunter2" not in str(client.sent) + str(client.headers) + it.last_error
    assert "ValueError" not in str(client.sent) + str(client.headers) + it.last_error


async def test_control_flow_that_leaves_a_handler_is_answered_too(client):
    async def handler(_request):
        raise RunSuspended

    it = make(client, handler)
    await it._arrived(message("r"))
    await it.finish(deadline())
    assert client.sent["r"]["error"]["code"] == "internal"


async def test_an_api_error_travels_as_body_and_headers(client):
    async def handler(_request):
        raise NotFound("no run\r\nX: y", run_id="r1")

    it = make(client, handler)
    await it._arrived(message("r"))
    await it.finish(deadline())
    expected = {"code": "not_found", "message": "no run\r\nX: y", "run_id": "r1"}
    assert client.sent["r"] == {"status": "error", "error": expected}
    assert client.headers["r"] == {"Nats-Service-Error": "no run X: y", "Nats-Service-Error-Code": "404"}


async def test_details_that_are_no_json_do_not_swallow_the_error(client):
    async def handler(_request):
        raise NotFound("gone", odd=object())

    it = make(client, handler)
    await it._arrived(message("r"))
    await it.finish(deadline())
    assert client.sent["r"] == {"status": "error", "error": {"code": "not_found", "message": "gone"}}


async def test_a_reply_over_the_servers_limit_becomes_an_error(client):
    async def handler(_request):
        return {"much": "x" * 1000}

    it = make(client, handler)
    await it._arrived(message("r"))
    await it.finish(deadline())
    assert client.sent["r"]["error"]["code"] == "too_large"


async def test_a_result_that_is_no_json_is_an_internal_error(client):
    async def handler(_request):
        return {"it": object()}

    it = make(client, handler)
    await it._arrived(message("r"))
    await it.finish(deadline())
    assert client.sent["r"]["error"]["code"] == "internal"


async def test_finishing_waits_for_what_runs_and_answers_it(client):
    gate = asyncio.Event()

    async def handler(_request):
        await gate.wait()
        return {"finished": True}

    it = make(client, handler, concurrency=1)
    await it._arrived(message("runs"))
    await it._arrived(message("waits"))
    finishing = asyncio.create_task(it.finish(deadline()))
    await asyncio.sleep(0)
    gate.set()
    await finishing
    assert client.sent == {"runs": {"finished": True}, "waits": {"finished": True}}


async def test_what_is_still_running_at_the_deadline_is_told_that_it_was_cut(client):
    async def handler(_request):
        await asyncio.Event().wait()

    it = make(client, handler, concurrency=1)
    await it._arrived(message("runs"))
    await it._arrived(message("waits"))
    await it.finish(deadline(0.02))
    assert {reply: sent["error"]["code"] for reply, sent in client.sent.items()} == {
        "runs": "unavailable",
        "waits": "unavailable",
    }


async def test_a_reply_that_cannot_be_sent_breaks_nothing(client):
    async def handler(_request):
        return {}

    it = make(client, handler)
    client.broken = True
    await it._arrived(message("lost"))
    await it.finish(deadline())
    client.broken = False
    await it._arrived(message("sent"))
    await it.finish(deadline())
    assert client.sent == {"sent": {}}


async def test_requests_and_errors_are_counted(client):
    async def handler(request):
        if request.json().get("bad"):
            raise NotFound("none")

    it = make(client, handler)
    await it._arrived(message("a"))
    await it._arrived(message("b", b'{"bad": 1}'))
    await it.finish(deadline())
    assert (it.requests, it.errors, it.last_error) == (2, 1, "not_found: none")
    assert it.processing_time > 0


def test_an_empty_body_is_an_empty_object():
    assert Request("a.b", b"").json() == {}


@pytest.mark.parametrize("body", [b"[1]", b"{", b"7"])
def test_a_body_that_is_no_object_is_an_invalid_request(body):
    with pytest.raises(InvalidRequest, match="send a JSON object"):
        Request("a.b", body).json()


def test_the_last_token_of_a_subject_is_the_agent():
    assert Request("config.get.Assistant", b"").agent == "assistant"
    with pytest.raises(InvalidRequest, match="correct the last part of the subject"):
        _ = Request("config.get.ä", b"").agent
