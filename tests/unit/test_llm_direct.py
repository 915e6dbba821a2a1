"""Whole answers come by a short way, and by OpenAI's client where there is none: to a server and a caller, the same."""

from __future__ import annotations

import asyncio

import pytest

from perdure.errors import PermanentError, RetryableError
from perdure.llm import direct
from perdure.llm.client import ModelClient
from perdure.llm.types import ModelRequest, ModelSettings
from perdure.testing import faults
from perdure.testing.faults import FaultServer

HELLO = ModelRequest([{"role": "user", "content": "hello ☃"}])
WAYS_OWN = {"accept-encoding", "connection"}  # headers that each HTTP client has of its own


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for kind in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{kind}_proxy", raising=False)
        monkeypatch.delenv(f"{kind.upper()}_PROXY", raising=False)


@pytest.fixture
async def server():
    async with FaultServer() as running:
        yield running


@pytest.fixture(params=["short", "long"])
async def client(request, monkeypatch):
    if request.param == "long":
        monkeypatch.setattr(direct, "possible", lambda _: False)
    made = ModelClient()
    yield made
    await made.close()


def settings(server: FaultServer, **changes) -> ModelSettings:
    said = {"model": "m", "base_url": server.url, "api_key": "sk-secret-123456", "timeout": 5.0}
    return ModelSettings(**{**said, **changes})


def short(client: ModelClient) -> bool:
    (kept,) = client._clients.values()
    return kept.direct is not None


async def test_both_ways_send_the_same_request(server, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    where = settings(server, headers={"X-Own": "yes"}, temperature=0.5, max_tokens=7)
    for is_short in (True, False):
        if not is_short:
            monkeypatch.setattr(direct, "possible", lambda _: False)
        client = ModelClient()
        try:
            await client.complete(where, HELLO)
            assert short(client) is is_short
        finally:
            await client.close()
    one, other = server.asked
    assert (one.path, one.json) == (other.path, other.json)
    sent = [{name: said for name, said in asked.headers.items() if name not in WAYS_OWN} for asked in (one, other)]
    assert sent[0] == sent[1]
    assert sent[0]["authorization"] == "Bearer sk-secret-123456"
    assert (sent[0]["x-own"], sent[0]["openai-organization"]) == ("yes", "org-1")


@pytest.mark.parametrize(
    ("behaviour", "kind", "says"),
    [
        (faults.status(401, "no: sk-secret-123456"), PermanentError, "answered 401: no: [key]. Set llm_api_key"),
        (faults.status(429, "quota", code="insufficient_quota"), PermanentError, "quota is used up"),
        (faults.status(429, headers={"Retry-After": "7"}), RetryableError, "answered 429: as the test asked."),
        (faults.status(503), RetryableError, "answered 503: as the test asked."),
        (faults.raw(b"<html>hello</html>", content_type="text/html"), RetryableError, "no usable chat completion"),
        (faults.raw(b"{not json"), RetryableError, "no usable chat completion"),
        (faults.drop(), RetryableError, "cannot be reached"),
        (faults.answer("late", delay=30), RetryableError, "was silent for 0.3 s."),
    ],
)
async def test_both_ways_say_the_same_of_what_goes_wrong(server, client, behaviour, kind, says):
    server.script(behaviour)
    with pytest.raises(kind) as told:
        await client.complete(settings(server, timeout=0.3), HELLO)
    assert says in str(told.value)
    if says.startswith("answered 429: as"):
        assert told.value.retry_after == 7.0
    assert len(server.asked) == 1


async def test_a_status_without_json_is_an_error_of_its_class(server, client):
    async def act(*_):
        return faults.web.Response(status=502, text="<html>bad gateway</html>")

    server.script(act)
    with pytest.raises(RetryableError, match="answered 502"):
        await client.complete(settings(server), HELLO)


async def test_an_answer_that_stalls_half_way_is_given_up(server, client):
    async def act(request, _):
        response = faults.web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"choices":')
        await asyncio.Event().wait()

    server.script(act)
    with pytest.raises(RetryableError, match=r"silent for 0\.3 s"):
        await client.complete(settings(server, timeout=0.3), HELLO)


async def test_what_the_fast_json_refuses_goes_the_long_way(server, client):
    server.script(faults.answer("big"))
    tool = {"type": "function", "function": {"name": "n", "parameters": {"maximum": 2**70}}}
    reply = await client.complete(settings(server), ModelRequest(HELLO.messages, [tool]))
    assert reply.text == "big"
    assert server.asked[0].json["tools"][0]["function"]["parameters"]["maximum"] == float(2**70)


async def test_an_answer_with_numbers_that_json_has_not_is_read(server, client):
    server.script(faults.raw(b'{"score": NaN, "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}'))
    assert (await client.complete(settings(server), HELLO)).text == "hi"


async def test_a_redirect_is_followed(server, client):
    async def act(request, payload):
        moved = request.path.endswith("/responses")
        to = faults.answer("moved") if moved else faults.status(307, headers={"Location": f"{server.url}/responses"})
        return await to(request, payload)

    server.always(act)
    assert (await client.complete(settings(server), HELLO)).text == "moved"
    assert server.asked[-1].json["messages"] == HELLO.messages


async def test_a_server_that_came_back_is_asked_again(server, client):
    assert (await client.complete(settings(server), HELLO)).text
    await server.stop()
    await server.start()
    assert (await client.complete(settings(server), HELLO)).text


async def test_a_cancelled_call_leaves_nothing_for_the_next_one(server, client):
    server.script(faults.answer("slow", delay=0.2), faults.answer("next"))
    call = asyncio.create_task(client.complete(settings(server), HELLO))
    while not server.asked:
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await client.complete(settings(server), HELLO)).text == "next"


async def test_a_proxy_of_the_environment_is_used(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
    client = ModelClient()
    try:
        reply = await client.complete(settings(server, base_url="http://model.invalid/v1"), HELLO)
    finally:
        await client.close()
    assert reply.text
    assert server.asked[0].headers["host"] == "model.invalid"


async def test_an_address_that_names_a_user_goes_the_long_way(server):
    client = ModelClient()
    try:
        reply = await client.complete(settings(server, base_url=server.url.replace("//", "//me:and@")), HELLO)
        assert reply.text
        assert not short(client)
    finally:
        await client.close()
