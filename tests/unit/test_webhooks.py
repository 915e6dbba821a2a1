"""Webhooks: the signature, the addresses that may be reached, what counts as delivered."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from perdure.webhooks import NotDelivered, WebhookSender, check_url, sign, verify
from perdure.webhooks.targets import allowed

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'


def headers(**changed: str) -> dict[str, str]:
    told = {"webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp": "1614265330"}
    told["webhook-signature"] = sign(SECRET, told["webhook-id"], 1614265330, BODY)
    return {**told, **changed}


def test_the_signature_is_that_of_standard_webhooks():
    assert headers()["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    verify(SECRET, {name.title(): value for name, value in headers().items()}, BODY, now=1614265340)


@pytest.mark.parametrize(
    ("changed", "body", "now"),
    [
        ({}, b"{}", 1614265330),
        ({"webhook-id": "another"}, BODY, 1614265330),
        ({"webhook-timestamp": "1614265331"}, BODY, 1614265330),
        ({"webhook-signature": "v1,AAAA"}, BODY, 1614265330),
        ({"webhook-timestamp": "soon"}, BODY, 1614265330),
        ({}, BODY, 1614265330 + 301),
        ({}, BODY, 1614265330 - 301),
    ],
)
def test_what_was_changed_or_is_old_does_not_verify(changed, body, now):
    with pytest.raises(ValueError, match="webhook"):
        verify(SECRET, headers(**changed), body, now=now)


@pytest.mark.parametrize("secret", ["short", "whsec_%%%", "whsec_AAAA"])
def test_a_secret_that_protects_nothing_is_refused(secret):
    with pytest.raises(ValueError, match="secret"):
        sign(secret, "id", 1, b"")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "ff02::1", "198.18.0.1", "::127.0.0.1",
        "::ffff:0:7f00:1", "64:ff9b:1::7f00:1", "fec0::1", "3fff::1", "5f00::1", "2001:db8::1", "192.0.0.8",
        "192.88.99.1", "240.0.0.1",
    ],
)  # fmt: skip
def test_addresses_of_this_machine_and_its_networks_are_not_reached(address):
    assert not allowed(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_public_addresses_are(address):
    assert allowed(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/x", "ftp://example.com", "https://", "https://user:word@example.com", "example.com",
        "https://127.0.0.1/", "https://[::1]/", "https://exa mple.com", "https://example.com:99999",
        "https://e/" + "x" * 2048,
    ],
)  # fmt: skip
def test_urls_that_cannot_be_a_target_are_refused(url):
    with pytest.raises(ValueError, match=r".+"):
        check_url(url)


@asynccontextmanager
async def receiver(answer):
    """An HTTP server on this machine; its port and what it got."""
    got: list[web.Request] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        await request.read()
        got.append(request)
        return await answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield site._server.sockets[0].getsockname()[1], got  # type: ignore[union-attr]
    finally:
        await runner.cleanup()


async def send(port: int, *, private: bool = True, host: str = "127.0.0.1", timeout: float = 5.0) -> None:
    sender = WebhookSender(private=private, timeout=timeout)
    try:
        scheme = "http" if private else "https"
        await sender.send(f"{scheme}://{host}:{port}/hook?token=x", "id-1", BODY, SECRET)
    finally:
        await sender.close()


async def ok(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="x" * 100_000)


async def test_a_2xx_is_a_delivery_with_a_signature_that_verifies():
    async with receiver(ok) as (port, got):
        await send(port)
        verify(SECRET, got[0].headers, await got[0].read())


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1"])
async def test_a_name_of_this_machine_is_not_reached(host):
    async with receiver(ok) as (port, got):
        with pytest.raises(NotDelivered, match=r"not a public address|InvalidUrl"):
            await send(port, private=False, host=host)
        assert got == []


async def test_a_name_that_means_another_address_a_moment_later_is_checked_when_it_is_used(monkeypatch):
    """The check and the connection use one resolution: there is no moment in between."""
    asked: list[str] = []

    async def look_up(host, port, _family):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("perdure.webhooks.targets.look_up", look_up)
    async with receiver(ok) as (port, got):
        with pytest.raises(NotDelivered, match="not a public address"):
            await send(port, private=False, host="rebinding.example")
        assert (asked, got) == (["rebinding.example"], [])


async def test_a_redirect_is_not_followed():
    async def elsewhere(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/other")

    async with receiver(elsewhere) as (port, got):
        with pytest.raises(NotDelivered, match="answered 302"):
            await send(port)
        assert len(got) == 1


async def test_what_the_receiver_says_of_trying_again_is_heard():
    async def busy(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": "7"})

    async def gone(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=410)

    async with receiver(busy) as (port, _):
        with pytest.raises(NotDelivered) as told:
            await send(port)
        assert (told.value.retry_after, told.value.permanent) == (7.0, False)
    async with receiver(gone) as (port, _):
        with pytest.raises(NotDelivered) as told:
            await send(port)
        assert told.value.permanent


async def test_a_receiver_that_does_not_answer_is_left_alone():
    release = asyncio.Event()

    async def slow(_request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.Response()

    async with receiver(slow) as (port, _):
        with pytest.raises(NotDelivered, match="no answer within"):
            await send(port, timeout=0.1)
        release.set()


async def test_nobody_there_is_told_without_the_urls_query():
    with pytest.raises(NotDelivered) as told:
        await send(1)
    assert "token" not in str(told.value)
