"""`perdure doctor` on platforms that are broken, each in one way: it names the fault, and the fix that mends it."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import orjson
import pytest
from nats.aio.client import Client
from nats.js.api import RetentionPolicy, StreamConfig
from pydantic import BaseModel

from perdure import BaseAgent, workflow
from perdure.bus.bucket import Bucket
from perdure.bus.streams import ensure_streams
from perdure.doctor import Finding, examine, machine, postgres
from perdure.embedded import binaries
from perdure.embedded.nats_server import NatsServer
from perdure.embedded.ports import HOST
from perdure.embedded.server import ask
from perdure.settings import Settings
from tests.command import perdure as command
from tests.platform import in_process
from tests.secured import ADMIN, as_user, named, restricted_nats
from tests.support import Servers, eventually, temporary_folder


class Pace(BaseModel):
    pace: int = 1


class Clerk(BaseAgent):
    name = "clerk"
    Settings = Pace

    @workflow
    async def run(self, _ctx: Any, task: Any) -> Any:
        return task


def faults(findings: list[Finding]) -> list[Finding]:
    """What is not ok, but for what is a test's own: a Postgres without fsync, a busy machine with little room."""
    bad = [each for each in findings if each.status not in ("ok", "skipped")]
    return [
        each
        for each in bad
        if each.area != "machine" and each.check not in ("durability", "clock") and "event_loop" not in each.said
    ]


@pytest.fixture
def nobody() -> Iterator[Callable[[], int]]:
    """Gives ports of this machine at which nobody answers, and which nobody else can take meanwhile."""
    held: list[socket.socket] = []

    def port() -> int:
        held.append(socket.socket())
        held[-1].bind((HOST, 0))
        return int(held[-1].getsockname()[1])

    yield port
    for each in held:
        each.close()


def only(findings: list[Finding], area: str, check: str, status: str = "error") -> Finding:
    """The one finding of that kind."""
    found = [each for each in findings if (each.area, each.check, each.status) == (area, check, status)]
    assert len(found) == 1, (findings, f"{area} {check} {status}")
    assert found[0].fix, found[0]
    return found[0]


async def test_a_platform_that_is_well_has_nothing_to_mend(settings: Settings, nc: Client):
    async with in_process(settings, nc, Clerk) as platform:
        await platform.ask("clerk", "hello")
        findings = await examine(settings)
        assert faults(findings) == []
        [version] = [each for each in findings if (each.area, each.check) == ("nats", "version")]
        assert re.fullmatch(r"2\.\d+\.\d+", version.said)
        assert {"machine", "settings", "nats", "postgres", "redis", "platform"} <= {each.area for each in findings}


async def test_with_nothing_running_each_server_is_named_with_its_variable(tmp_path: Path, nobody: Callable[[], int]):
    where = {"nats_url": f"nats://127.0.0.1:{nobody()}", "redis_url": f"redis://127.0.0.1:{nobody()}/0"}
    where["database_url"] = f"postgresql://perdure:geheim@127.0.0.1:{nobody()}/perdure"
    findings = await examine(Settings(**where, consul_http_addr=None, namespace="", home=tmp_path))
    assert "NATS_URL" in only(findings, "nats", "answers").fix
    assert "DATABASE_URL" in only(findings, "postgres", "answers").fix
    assert "REDIS_URL" in only(findings, "redis", "answers").fix
    assert "geheim" not in repr(findings)
    assert {each.check for each in findings if each.status == "skipped"} == {"processes", "rows"}


class Bare(NatsServer):
    """A nats-server without JetStream."""

    def command(self) -> list[str]:
        return [*(str(binaries.nats_server()), "--addr", HOST, "--port", str(self.port), "--name", self.id)]

    async def ready(self) -> bool:
        return f'"server_name":"{self.id}"'.encode() in await ask(self.port, b"")


async def test_a_nats_server_without_jetstream(settings: Settings):
    with temporary_folder("bare") as folder:
        server = Bare(folder)
        await server.start()
        try:
            findings = await examine(settings.model_copy(update={"nats_url": server.url}))
        finally:
            await server.kill()
    assert "nats-server -js" in only(findings, "nats", "JetStream").fix


@asynccontextmanager
async def saying(url: str, pattern: bytes, replacement: bytes) -> AsyncIterator[str]:
    """The nats-server at `url`, seen through a relay that changes its greeting."""
    host, port = url.removeprefix("nats://").split(":")
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(re.sub(pattern, replacement, data))
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await asyncio.open_connection(host, int(port))
        tasks.update((asyncio.create_task(pump(behind[0], writer)), asyncio.create_task(pump(reader, behind[1]))))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_people_who_are_a_user_of_their_own_may_look_at_all_of_it(settings: Settings):
    with temporary_folder("secured") as home:
        async with restricted_nats(home, bucket=True) as server:
            async with as_user(server.url, ADMIN) as admin:
                await ensure_streams(admin.nc.jetstream())
                await Bucket(admin.nc).ensure()
            findings = await examine(named(settings, "operator", nats_url=server.url, payload_store="nats"))
    seen = {each.check: each.status for each in findings if each.area == "nats"}
    checks = ("JetStream", "streams", "payloads", "consumers", "streams of others")
    assert {seen[check] for check in checks} == {"ok"}


async def test_a_nats_server_that_is_too_old(settings: Settings):
    async with saying(settings.nats_url, rb'"version":"[0-9.]+"', b'"version":"2.9.10"') as url:
        findings = await examine(settings.model_copy(update={"nats_url": url}))
    found = only(findings, "nats", "version")
    assert "2.9.10" in found.said
    assert "2.12" in found.fix


async def test_streams_that_are_not_there_or_not_as_they_should_be(settings: Settings, nc: Client):
    js = nc.jetstream()
    missing = [each for each in await examine(settings) if each.check == "streams"]
    assert {each.status for each in missing} == {"error"}
    assert len(missing) == 3
    assert all("Start the scheduler" in each.fix for each in missing)
    await ensure_streams(js)
    await js.delete_stream("WORK")
    await js.add_stream(StreamConfig(name="WORK", subjects=["work.>"], retention=RetentionPolicy.LIMITS))
    assert "nats stream rm WORK" in only(await examine(settings), "nats", "streams").fix
    await js.delete_stream("WORK")
    await ensure_streams(js)
    config = (await js.stream_info("RUN_EVENTS")).config
    config.max_age = 3600
    await js.update_stream(config)
    drifted = only(await examine(settings), "nats", "streams", "warning")
    assert "max_age" in drifted.said
    assert "Restart the scheduler" in drifted.fix


async def test_an_object_store_that_is_to_be_used_and_is_not_there(settings: Settings, nc: Client):
    elsewhere = settings.model_copy(update={"payload_store": "nats"})
    missing = only(await examine(elsewhere), "nats", "payloads")
    assert "OBJ_payloads" in missing.said
    assert "PERDURE_PAYLOAD_STORE=nats" in missing.fix
    await Bucket(nc).ensure()
    assert ("payloads", "ok") in {(each.check, each.status) for each in await examine(elsewhere)}
    assert "payloads" not in {each.check for each in await examine(settings)}


async def test_a_stream_of_somebody_else_that_answers_requests(settings: Settings, nc: Client):
    await nc.jetstream().add_stream(StreamConfig(name="EVERYTHING", subjects=["config.>", "orders.>"]))
    found = only(await examine(settings), "nats", "streams of others")
    assert "config.>" in found.said
    assert "orders" not in found.said
    assert "nats stream edit EVERYTHING" in found.fix


async def test_tasks_that_nobody_takes(settings: Settings, nc: Client):
    async with in_process(settings, nc):
        pass  # the scheduler has made its consumer, and is gone
    await nc.jetstream().publish("task.clerk", b'{"task": 1}')
    found = [each for each in await examine(settings) if each.check == "consumers"]
    assert [each.status for each in found] == ["warning"]
    assert "python -m services.scheduler" in found[0].fix


async def test_a_database_without_tables_and_one_whose_migrations_were_changed(
    settings: Settings, servers: Servers, pool: asyncpg.Pool
):
    await pool.execute("UPDATE schema_migrations SET checksum = 'another' WHERE version = 2")
    changed = only(await examine(settings), "postgres", "migrations")
    assert "0002_runs.sql" in changed.said
    assert "Put the file back" in changed.fix
    empty = f"{servers.postgres.database}_empty"
    await pool.execute(f"CREATE DATABASE {empty}")
    try:
        url = settings.database_url.replace(servers.postgres.database, empty)
        findings = await examine(settings.model_copy(update={"database_url": url}))
    finally:
        await pool.execute(f"DROP DATABASE {empty} WITH (FORCE)")
    assert only(findings, "postgres", "migrations").fix == "Run `perdure migrate`"


async def test_a_postgres_that_is_too_old(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(postgres, "LEAST_VERSION", 990_000)
    assert "16 or newer" in only(await examine(settings), "postgres", "version").fix


async def test_more_connections_than_postgres_takes(settings: Settings, nc: Client):
    async with in_process(settings, nc):
        findings = await examine(settings.model_copy(update={"pool_size": 200}))
    found = only(findings, "postgres", "connections")
    assert "max_connections" in found.fix
    assert "PERDURE_POOL_SIZE" in found.fix


@pytest.mark.parametrize(("ahead", "status"), [(3600.0, "error"), (-15.0, "warning")])
async def test_clocks_that_differ(settings: Settings, nc: Client, ahead: float, status: str):
    await ensure_streams(nc.jetstream())
    findings = await examine(settings, now=lambda: time.time() + ahead)
    clocks = [each for each in findings if each.check == "clock"]
    assert [each.status for each in clocks] == [status, status], "of NATS and of Postgres"
    assert all("NTP" in each.fix for each in clocks)


async def test_a_redis_that_drops_what_is_written_in_it(settings: Settings, redis: Any):
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    await redis.config_set("appendonly", "no")
    source = settings.model_copy(update={"config_store": "redis"})
    findings = await examine(source)
    assert "maxmemory-policy noeviction" in only(findings, "redis", "eviction").fix
    assert "appendonly yes" in only(findings, "redis", "appendonly").fix
    only(await examine(settings), "redis", "eviction", "warning")


async def test_a_full_disk(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    room = SimpleNamespace(total=10**12, free=10**8, used=0)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _folder: room)
    assert "PERDURE_HOME" in only(await examine(settings), "machine", "disk").fix


async def test_settings_that_contradict_and_secrets_that_are_not_there(settings: Settings):
    wrong = settings.model_copy(
        update={
            "inline_payload": 10**9,
            "gateway_jwt_issuer": "https://id.example",
            "callback_secret": "secret://env/NO_SUCH_VARIABLE",
            "encryption_keys": "k1:short",
        }
    )
    findings = await examine(wrong)
    assert "PERDURE_INLINE_PAYLOAD" in only(findings, "settings", "payloads").fix
    assert "all three" in only(findings, "settings", "tokens").fix
    assert "NO_SUCH_VARIABLE" in only(findings, "settings", "secrets").said
    assert "openssl rand" in only(findings, "settings", "encryption").fix


async def test_a_secret_of_an_agent_that_cannot_be_read_here(settings: Settings, pool: asyncpg.Pool):
    await pool.execute(
        "INSERT INTO agent_configurations (agent_name, config_key, config_value)"
        " VALUES ('clerk', 'api_key', 'secret://file/no/such/file')"
    )
    found = only(await examine(settings), "postgres", "secrets", "warning")
    assert "clerk.api_key" in found.said
    assert "perdure config set clerk api_key=" in found.fix


async def test_runs_that_were_sealed_with_a_key_that_is_not_here(settings: Settings, nc: Client):
    keys = [f"{name}:{base64.b64encode(bytes([number]) * 32).decode()}" for number, name in enumerate(("k1", "k2"))]
    sealing = settings.model_copy(update={"encryption_keys": keys[0]})
    async with in_process(sealing, nc, Clerk) as platform:
        await platform.ask("clerk", "a secret wish")
        assert faults(await examine(sealing)) == []
        for other in (settings, settings.model_copy(update={"encryption_keys": keys[1]})):
            found = only(await examine(other), "postgres", "encryption")
            assert "k1" in found.said
            assert "PERDURE_ENCRYPTION_KEYS" in found.fix


async def test_services_that_are_not_there_and_runs_that_nobody_takes(
    settings: Settings, pool: asyncpg.Pool, nc: Client
):
    async with in_process(settings, nc) as platform:
        run_id = await platform.start_run("clerk", "hello")
    await pool.execute("UPDATE runs SET created_at = now() - interval '1 hour' WHERE run_id = $1", run_id)
    findings = await examine(settings)
    assert "python -m config_manager" in only(findings, "platform", "config-manager").fix
    assert "python -m services.scheduler" in only(findings, "platform", "scheduler").fix
    assert "python -m config_manager" in only(findings, "platform", "broadcaster").fix
    assert "perdure agent" in only(findings, "platform", "runs", "warning").fix


async def test_an_agent_that_does_not_take_its_configuration(settings: Settings, nc: Client, pool: asyncpg.Pool):
    async with in_process(settings, nc, Clerk):
        await pool.execute(
            "INSERT INTO agent_configurations (agent_name, config_key, config_value) VALUES ('clerk', 'pace', 'fast')"
        )

        async def found() -> Finding:
            return only(await examine(settings), "platform", "configuration")

        told = await eventually(found, timeout=30)
    assert "pace" in told.said
    assert "perdure config set clerk pace=" in told.fix


async def test_a_run_that_waits_for_a_person(settings: Settings, nc: Client, pool: asyncpg.Pool):
    async with in_process(settings, nc) as platform:
        run_id = await platform.start_run("clerk", "hello")
    await pool.execute("UPDATE runs SET status = 'blocked' WHERE run_id = $1", run_id)
    found = only(await examine(settings), "platform", "runs", "warning")
    assert f"perdure runs show {run_id}" in found.fix


async def test_a_consul_that_was_left_out_is_no_fault(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    look_up = socket.getaddrinfo

    def left_out(host, *more, **options):
        if host == "consul":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", left_out)
    findings = await examine(settings.model_copy(update={"consul_http_addr": "http://consul:8500"}))
    [found] = [each for each in findings if each.area == "consul"]
    assert (found.status, "http://consul:8500" in found.said) == ("skipped", True)


async def test_a_consul_that_is_named_and_not_there(settings: Settings, nobody: Callable[[], int]):
    address = f"127.0.0.1:{nobody()}"
    found = only(
        await examine(settings.model_copy(update={"consul_http_addr": address})), "consul", "answers", "warning"
    )
    assert "CONSUL_HTTP_ADDR" in found.fix


async def test_the_command_prints_it_for_people_and_for_programs_and_ends_with_1(settings: Settings, tmp_path: Path):
    named = {"NATS_URL": settings.nats_url, "DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}
    code, out, err = await command(tmp_path, "doctor", "-o", "json", **named)
    assert (code, err) == (1, "")
    said = orjson.loads(out)
    assert said["healthy"] is False
    assert any(each["check"] == "scheduler" and "services.scheduler" in each["fix"] for each in said["findings"])
    code, out, _ = await command(tmp_path, "doctor", **named, COLUMNS="200")
    assert code == 1
    assert "no scheduler is registered" in out
    assert re.search(r"\d+ errors", out)
