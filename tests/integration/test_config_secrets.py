"""A secret that somebody tried to write stands nowhere afterwards."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import asyncpg
import pytest

from perdure.embedded.postgres_server import PostgresServer
from tests.config_support import PUT, ask, following, manager, messages
from tests.support import eventually

SECRET = "sk-live-4Yq9ZkP2"


def files_with_it(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]


async def test_a_refused_secret_is_in_no_log_history_event_or_cache(
    own_servers, own_postgres_settings, nc, redis, pool, capfd, monkeypatch
) -> None:
    settings = own_postgres_settings
    postgres: PostgresServer = own_servers.postgres
    monkeypatch.setenv("A_KEY", SECRET)
    heard = await messages(nc, "config.>")
    async with manager(settings) as running, following(nc, redis, settings) as agent:
        for layer in ("assistant", "*", "assistant@i-1"):
            with pytest.raises(asyncpg.CheckViolationError):
                await pool.execute(PUT, layer, "llm_api_key", SECRET)
            # As psql sends it: the secret is part of the statement, which a server logs when it fails.
            with pytest.raises(asyncpg.CheckViolationError):
                await pool.execute(
                    f"INSERT INTO agent_configurations (agent_name, config_key, config_value) "
                    f"VALUES ('{layer}', 'llm_api_key', '{SECRET}')"
                )
        for subject in ("config.set.assistant", "config.set._global"):
            reply = await ask(nc, subject, {"configurations": {"llm_api_key": SECRET}})
            assert (reply["error"]["code"], SECRET in str(reply)) == ("invalid_request", False)
        command = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "perdure.cli.main", "config", "set", "assistant", f"llm_api_key={SECRET}"),
            env={**os.environ, "NATS_URL": settings.nats_url},
            stdout=-1,
            stderr=-1,
        )
        out, err = await command.communicate()
        assert (command.returncode, SECRET.encode() in out + err) == (1, False)
        await pool.execute(PUT, "assistant", "llm_api_key", "secret://env/A_KEY")
        await eventually(lambda: agent.snapshot.get_setting("llm_api_key") == "secret://env/A_KEY")
        await running.copy.save()
        asked = [body for body in heard if "configurations" in body and "status" not in body]
        assert SECRET not in str([body for body in heard if body not in asked])
        for key in await redis.keys("*"):
            kind = await redis.type(key)
            value = await (redis.hgetall(key) if kind == b"hash" else redis.dump(key))
            assert SECRET not in repr(value)
        tables = await pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (table,) in tables:
            rows = await pool.fetch(f'SELECT * FROM "{table}"')
            assert SECRET not in repr(rows), table
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err
    await postgres.stop()
    # The server's log, its data and its write-ahead log.
    assert (postgres.data_dir / "PG_VERSION").exists()
    assert await asyncio.to_thread(files_with_it, postgres.data_dir.parent) == []
