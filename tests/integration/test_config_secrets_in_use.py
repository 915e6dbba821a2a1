"""Secrets that agents do use, from the environment and from files, stand in no store, message or log."""

from __future__ import annotations

import logging

import pytest

from perdure.agent.durable import DurableAgent
from perdure.testing.faults import FaultServer
from tests.config_support import ask
from tests.integration.agent_support import configure, output
from tests.platform import in_process
from tests.support import eventually

FROM_ENV = "sk-env-canary-3vT8mQ"
FROM_FILE = "sk-file-canary-9Lw2zB"


async def test_two_servers_and_two_keys_follow_each_other_by_sql_and_no_key_is_kept_anywhere(
    settings, nc, redis, pool, tmp_path, monkeypatch, capfd, caplog
) -> None:
    monkeypatch.setenv("CANARY_KEY", FROM_ENV)
    (tmp_path / "key").write_text(FROM_FILE + "\n")
    caplog.set_level(logging.DEBUG)
    heard: list[bytes] = []

    async def hear(message) -> None:
        heard.append(repr((message.subject, message.headers, message.data)).encode())

    await nc.subscribe(">", cb=hear)
    async with FaultServer() as one, FaultServer() as two, in_process(settings, nc, DurableAgent("bob")) as platform:
        sql = {"llm_base_url": one.url, "llm_api_key": "secret://env/CANARY_KEY", "llm_model": "small"}
        await configure(pool, "bob", **sql)

        async def answers(server: FaultServer, key: str, model: str) -> bool:
            await output(platform, "bob", "hello", timeout=10)
            if not server.asked:
                return False
            last = server.asked[-1]
            return last.headers["authorization"] == f"Bearer {key}" and last.json["model"] == model

        async def first() -> bool:
            return await answers(one, FROM_ENV, "small")

        async def second() -> bool:
            return await answers(two, FROM_FILE, "large")

        await eventually(first, timeout=20)
        asked = len(one.asked)
        sql = {"llm_base_url": two.url, "llm_api_key": f"secret://file{tmp_path}/key", "llm_model": "large"}
        async with pool.acquire() as connection, connection.transaction():
            await configure(connection, "bob", **sql)
        await eventually(second, timeout=20)
        assert len(one.asked) <= asked + 1  # the call under way, at most
        assert "secret://file" in str(await ask(nc, "config.get.bob"))
        await platform.services[0].copy.save()

        stores = {b"NATS": b"".join(heard)}
        jetstream = nc.jetstream()
        for stream in await jetstream.streams_info():
            state = stream.state
            for number in range(state.first_seq, state.last_seq + 1):
                try:
                    message = await jetstream.get_msg(stream.config.name, number)
                except Exception:  # noqa: BLE001 - a work queue has gaps
                    continue
                stores[f"{stream.config.name} {number}".encode()] = repr((message.data, message.headers)).encode()
        for key in await redis.keys("*"):
            kind = await redis.type(key)
            stores[key] = repr(await (redis.hgetall(key) if kind == b"hash" else redis.dump(key))).encode()
        for (table,) in await pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
            stores[table.encode()] = repr(await pool.fetch(f'SELECT * FROM "{table}"')).encode()
    said = capfd.readouterr()
    stores[b"logs"] = (said.out + said.err + caplog.text).encode()
    # The search is a real one: what is no secret is found where it belongs.
    assert b"secret://env/CANARY_KEY" in stores[b"config_history"]
    assert any(name.startswith(b"RUN_EVENTS") for name in stores)
    for canary in (FROM_ENV, FROM_FILE):
        assert [name for name, dump in stores.items() if canary.encode() in dump] == []


@pytest.fixture(autouse=True)
def own_model(monkeypatch):
    """Only what the configuration says."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
