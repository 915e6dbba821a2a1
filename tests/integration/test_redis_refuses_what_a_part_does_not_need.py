"""Every forbidden act of every Redis user is refused by a real server; and TLS to every server, when it is on."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from perdure.bus import connection
from perdure.bus.connection import connect
from perdure.embedded.redis_server import RedisServer
from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.store import acl
from perdure.store.postgres import connect_direct, create_pool
from perdure.store.redis import create_redis
from perdure.tls import client_context
from tests.secured import ADMIN, Authority, as_user, named, redis_answers, restricted_nats, tls_in_front
from tests.secured_platform import STREAM, over_nats_alone, secured_platform, users, walk
from tests.support import temporary_folder

AGENTS = ("greeter", "mailer", "desk")
LONG = "a-long-password-of-"


class SecuredRedis(RedisServer):
    """redis-server with the users that the command prints, and one for the test."""

    def command(self) -> list[str]:
        """As ever, with the file."""
        return [*super().command(), "--aclfile", str(self.home / "users.acl")]

    async def ready(self) -> bool:
        """It asks as the user of the test."""
        return await redis_answers(self.client(ADMIN))

    def client(self, user: str) -> Redis:
        return Redis(host="127.0.0.1", port=self.port, username=user, password=LONG + user, socket_timeout=5)


@pytest.fixture
async def secured() -> AsyncIterator[SecuredRedis]:
    with temporary_folder("redis-acl") as home:
        words = {f"REDIS_PASSWORD_{user.upper().replace('-', '_')}": LONG + user for user in (*SERVICES, *AGENTS)}
        made = acl.render(AGENTS, Settings(namespace=""), words)
        (home / "users.acl").write_text(f"{made}user {ADMIN} on >{LONG}{ADMIN} ~* &* +@all\n")
        server = SecuredRedis(home)
        await server.start()
        try:
            yield server
        finally:
            await server.kill()


SERVICES = ("config-manager", "scheduler", "gateway")
FORBIDDEN: dict[str, list[tuple[str, ...]]] = {
    "greeter": [
        *(("GET", "perdure:config:lkg:mailer"), ("SET", "perdure:config", "x"), ("GET", "perdure:ticket:x")),
        *(("SET", "config:greeter", "{}"), ("KEYS", "*"), ("SCAN", "0"), ("FLUSHALL",), ("CONFIG", "GET", "*")),
        *(("ACL", "LIST"), ("DEBUG", "SLEEP", "0"), ("SUBSCRIBE", "x"), ("SHUTDOWN",), ("SCRIPT", "FLUSH")),
        ("EVAL", "return redis.call('GET', 'perdure:ticket:x')", "0"),
    ],
    "scheduler": [("GET", "perdure:run:x"), ("SET", "x", "y"), ("EVAL", "return 1", "0"), ("FLUSHDB",)],
    "gateway": [("GET", "perdure:run:x"), ("SET", "perdure:config", "x"), ("DEL", "perdure:ticket:x"), ("FLUSHALL",)],
    "config-manager": [("GET", "perdure:run:x"), ("SET", "perdure:ticket:x", "y"), ("CONFIG", "SET", "a", "b")],
}


async def may(client: Redis, command: tuple[str, ...]) -> bool:
    try:
        await client.execute_command(*command)
    except RedisError as error:
        return not ("permission" in str(error) or "can't access at least one of the keys" in str(error))
    return True


async def test_what_a_user_may_not_do_is_refused(secured: SecuredRedis):
    for user, forbidden in FORBIDDEN.items():
        client = secured.client(user)
        assert await client.ping()
        for command in forbidden:
            assert await may(client, command) is False, (user, command)
        await client.aclose()


async def test_a_platform_with_users_of_redis_that_speaks_tls_to_all_servers_does_all_it_is_for(
    settings: Settings, secured: SecuredRedis
):
    with temporary_folder("tls") as home:
        authority = Authority(home / "ca")
        database = int(re.search(r":(\d+)/", settings.database_url)[1])
        async with (
            restricted_nats(home, *users(), tls=authority) as nats,
            tls_in_front(database, authority.serves("pg"), postgres=True) as postgres,
            tls_in_front(secured.port, authority.serves("redis")) as redis,
        ):
            certificate, key = authority.issue("gateway")
            changed: dict[str, Any] = {
                "nats_url": nats.url,
                "database_url": settings.database_url.replace(f":{database}/", f":{postgres}/"),
                "tls_ca": str(authority.file),
                "gateway_tls_cert": certificate,
                "gateway_tls_key": key,
            }

            def place(user: str) -> Settings:
                who = user if user in (*SERVICES, *AGENTS) else ADMIN
                url = f"redis://{who}:{LONG}{who}@127.0.0.1:{redis}/0"
                return named(settings, user, **changed, redis_url=url, instance_id=f"{user}-1")

            trusting = ssl.create_default_context(cafile=str(authority.file))
            async with as_user(nats.url, ADMIN, tls=trusting) as admin:
                await admin.nc.jetstream().add_stream(name=STREAM, subjects=["orders.*"])
                await admin.nc.publish("orders.new", b'{"item": "tea"}')
            async with secured_platform(place) as door:
                assert door.gateway.server.url.startswith("https://")
                url = door.gateway.server.url
                async with httpx2.AsyncClient(base_url=url, verify=trusting, trust_env=False) as door.http:
                    await walk(door, place)
                async with as_user(nats.url, "client", tls=trusting) as one:
                    await over_nats_alone(one.nc)
            client = secured.client(ADMIN)
            refused = await client.execute_command("ACL", "LOG")
            await client.aclose()
            # The client asks for notices of maintenance by itself, and does without.
            assert [each for each in refused if each[b"object"] != b"client"] == []


async def test_a_server_that_is_not_believed_is_not_spoken_to(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "CONNECT_PATIENCE", 1.0)
    with temporary_folder("tls") as home:
        ours, others = Authority(home / "ours"), Authority(home / "others")
        database = int(re.search(r":(\d+)/", settings.database_url)[1])
        redis = int(settings.redis_url.rpartition(":")[2].partition("/")[0])
        said = settings.model_copy(update={"tls_ca": str(ours.file)})
        with pytest.raises(SetupError, match="offers no TLS"):
            await connect(said, "test")
        with pytest.raises(SetupError, match="rejected SSL upgrade"):
            await create_pool(said, "test")
        for context in (others.serves("x"), ours.serves("y", "elsewhere.example")):
            async with tls_in_front(database, context, postgres=True) as there, tls_in_front(redis, context) as cache:
                await refused(at(said, database, there, cache))
        good = ours.serves("good")
        good.verify_mode = ssl.CERT_REQUIRED
        good.load_verify_locations(ours.file)
        async with tls_in_front(database, good, postgres=True) as there, tls_in_front(redis, good) as cache:
            await refused(at(said, database, there, cache))
            certificate, key = ours.issue("me", "me.example")
            known = at(said, database, there, cache).model_copy(update={"tls_cert": certificate, "tls_key": key})
            direct = await connect_direct(known, "test")
            await direct.close()
            client = create_redis(known)
            assert await client.ping()
            await client.aclose()
        async with restricted_nats(home, tls=others) as nats:
            with pytest.raises(SetupError, match="certificate verify failed"):
                await connect(named(said, "client", nats_url=nats.url), "test")


def at(settings: Settings, database: int, postgres: int, redis: int) -> Settings:
    url = settings.database_url.replace(f":{database}/", f":{postgres}/")
    return settings.model_copy(update={"database_url": url, "redis_url": f"redis://127.0.0.1:{redis}/0"})


async def refused(settings: Settings) -> None:
    with pytest.raises(SetupError):
        await create_pool(settings, "test")
    client = create_redis(settings)
    with pytest.raises((RedisError, OSError)):
        await client.ping()
    await client.aclose()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tls_ca": "{here}/none.pem"}, "PERDURE_TLS_CA=.*none.pem cannot be read"),
        ({"tls_ca": "{here}/words"}, "PERDURE_TLS_CA=.*words is no certificate in PEM"),
        ({"tls_ca": "{here}/ca.pem", "tls_key": "{here}/me.key"}, "PERDURE_TLS_KEY=.* without PERDURE_TLS_CERT"),
        ({"tls_ca": "{here}/ca.pem", "tls_cert": "{here}/me.crt", "tls_key": "{here}/you.key"}, "key is not the one"),
        ({"tls_ca": "{here}/ca.pem", "tls_cert": "{here}/none.crt"}, "there is no file .*none.crt"),
        ({"tls_ca": "{here}/ca.pem", "tls_cert": "{here}/words"}, "both are PEM files"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, changed: dict[str, str], said: str):
    authority = Authority(tmp_path)
    authority.issue("me")
    authority.issue("you")
    (tmp_path / "words").write_text("hello")
    with pytest.raises(SetupError, match=said):
        client_context(Settings(**{name: value.format(here=tmp_path) for name, value in changed.items()}), "nats")
    assert client_context(Settings(tls_ca=str(authority.file), tls_for="redis"), "nats") is None


def test_a_user_of_redis_without_a_good_password_is_named():
    with pytest.raises(ValueError, match="REDIS_PASSWORD_CONFIG_MANAGER is not set"):
        acl.render([], Settings(), {"REDIS_PASSWORD_CONFIG_MANAGER": "short"})
