"""What is promised of configuration holds alike with SQL and with Redis as its source."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, Field

from perdure.config.keys import DurableAgentSettings
from perdure.config.schema import schema_of
from tests.config_stores import RedisStore, SqlStore
from tests.config_support import ask, following, manager, messages
from tests.support import eventually

SLOW = {"config_poll_interval": 3600.0}  # nothing is found by polling: what arrives was told


class Mailer(BaseModel):
    retries: int = Field(3, ge=0, le=10)
    smtp_password: str | None = Field(None, json_schema_extra={"secret": True})


@pytest.fixture(params=["postgres", "redis"])
def store(request, pool, redis):
    return SqlStore(pool) if request.param == "postgres" else RedisStore(redis)


@pytest.fixture
async def running(settings, store, monkeypatch):
    monkeypatch.setattr("config_manager.service.POLL", 3600.0)
    async with manager(settings.model_copy(update={**SLOW, "config_store": store.name})) as service:
        if service.source is not None:
            await eventually(service.source.connected.is_set)
        yield service


@pytest.fixture
def patient(settings):
    return settings.model_copy(update=SLOW)


async def test_a_change_reaches_a_running_agent_and_is_told(running, patient, store, nc, redis) -> None:
    updates, applied = await messages(nc, "config.update"), await messages(nc, "config.applied.>")
    async with following(nc, redis, patient) as agent:
        await store.put("assistant", "agent_role", "a pirate")
        await eventually(lambda: agent.snapshot.get_setting("agent_role") == "a pirate")
        await store.delete("assistant", "agent_role")
        await eventually(lambda: agent.snapshot.get_setting("agent_role") is None)
        assert agent.snapshot.revision == 2
        await eventually(lambda: [each["revision"] for each in applied] == [0, 1, 2])
    assert [(each["agent_name"], each["updated_keys"], each["revision"]) for each in updates] == [
        ("assistant", ["agent_role"], 1),
        ("assistant", ["agent_role"], 2),
    ]


async def test_layers_lie_above_each_other(running, patient, store, nc, redis) -> None:
    async with following(nc, redis, patient) as agent:
        for layer in ("*", "assistant", "assistant@i-1"):
            await store.put(layer, "k", f"of {layer}")
            await eventually(lambda layer=layer: agent.snapshot.get_setting("k") == f"of {layer}")
        assert (await ask(nc, "config.get.assistant"))["configurations"] == {"k": "of assistant"}
        assert (await ask(nc, "config.get.another"))["configurations"] == {"k": "of *"}
        await store.delete("assistant@i-1", "k")
        await eventually(lambda: agent.snapshot.get_setting("k") == "of assistant")
        await store.delete("assistant", "k")
        await eventually(lambda: agent.snapshot.get_setting("k") == "of *")


async def test_a_bad_value_is_held_and_a_later_one_ends_the_hold(running, patient, store, nc, redis) -> None:
    applied = await messages(nc, "config.applied.mailer")
    async with following(nc, redis, patient, "mailer", model=Mailer) as agent:
        await store.put("mailer", "retries", "4")
        await eventually(lambda: agent.snapshot.get_setting("retries") == 4)
        await store.put("mailer", "retries", "many")
        await eventually(lambda: running.table.revision == 2)
        reply = await ask(nc, "config.get.mailer", {"min_revision": 2})
        assert (reply["configurations"], reply["held"]["retries"]["value_revision"]) == ({"retries": "4"}, 1)
        await eventually(lambda: applied[-1]["status"] == "rejected")
        await store.put("mailer", "other", "applies all the same")
        await eventually(lambda: agent.snapshot.get_setting("other") == "applies all the same")
        assert agent.snapshot.get_setting("retries") == 4
        await store.put("mailer", "retries", "6")
        await eventually(lambda: agent.snapshot.get_setting("retries") == 6)
        assert "held" not in await ask(nc, "config.get.mailer")


async def test_an_unknown_key_passes(running, patient, store, nc, redis) -> None:
    async with following(nc, redis, patient) as agent:
        await store.put("assistant", "my own: key", '{"any": ["thing"]}')
        await eventually(lambda: agent.snapshot.get_setting("my own: key", {}) == {"any": ["thing"]})


async def test_a_plain_value_under_a_secret_key_is_not_kept(running, store, nc, pool) -> None:
    await ask(nc, "config.schema.mailer", {"schema": schema_of(Mailer)})
    await store.put("mailer", "smtp_password", "secret://env/SMTP")
    await eventually(lambda: running.table.revision == 1)
    for layer in ("mailer", "*"):
        if store.name == "postgres":
            with pytest.raises(Exception, match="is a secret key"):
                await store.put(layer, "smtp_password", "hunter2")
        else:
            await store.put(layer, "smtp_password", "hunter2")
    refused = await ask(nc, "config.set.mailer", {"configurations": {"smtp_password": "hunter2"}})
    assert refused["error"]["code"] == "invalid_request"

    async def as_before() -> bool:
        return (
            await store.value("mailer", "smtp_password") == "secret://env/SMTP"
            and await store.value("*", "smtp_password") is None
        )

    await eventually(as_before)
    assert "hunter2" not in repr(await pool.fetch("SELECT * FROM config_history"))
    assert (await ask(nc, "config.get.mailer"))["configurations"] == {"smtp_password": "secret://env/SMTP"}


async def test_several_keys_at_once_are_one_revision(running, patient, store, nc, redis) -> None:
    seen = []

    async def on_change(update, snapshot) -> None:
        seen.append((update.revision, dict(snapshot.values)))

    async with following(nc, redis, patient, on_change=on_change) as agent:
        await store.put("assistant", "gone", "1")
        await eventually(lambda: agent.snapshot.revision == 1)
        await store.batch("assistant", {"agent_role": "a cook", "max_iterations": "5", "gone": None})
        await eventually(lambda: len(seen) == 2)
    assert seen[1] == (2, {"agent_role": "a cook", "max_iterations": "5"})
    assert await store.value("assistant", "max_iterations") == "5"


async def test_set_over_nats_stands_in_the_store_and_conflicts_are_told(running, store, nc) -> None:
    reply = await ask(nc, "config.set.assistant", {"configurations": {"k": "1", "n": 2}, "expected_revision": 0})
    assert (reply["configurations"], reply["revision"]) == ({"k": "1", "n": "2"}, 1)
    assert (await store.value("assistant", "k"), await store.value("assistant", "n")) == ("1", "2")
    await store.put("assistant", "k", "2")
    late = await ask(nc, "config.set.assistant", {"configurations": {"k": "3"}, "expected_revision": 1})
    assert (late["error"]["code"], late["error"]["revision"]) == ("conflict", 2)
    assert await store.value("assistant", "k") == "2"
    gone = await ask(nc, "config.set.assistant", {"configurations": {"k": None}})
    assert (gone["configurations"], await store.value("assistant", "k")) == ({"n": "2"}, None)


async def test_history_says_who_and_a_rollback_is_a_new_revision(running, store, nc, pool) -> None:
    await store.put("assistant", "k", "1")
    await eventually(lambda: running.table.revision == 1)
    await ask(nc, "config.set.assistant", {"configurations": {"k": "2", "j": "2"}, "changed_by": "ada"})
    history = (await ask(nc, "config.history.assistant", {"key": "k"}))["history"]
    who = "redis" if store.name == "redis" else await pool.fetchval("SELECT session_user")
    assert [(each["old_value"], each["new_value"], each["changed_by"]) for each in history] == [
        ("1", "2", "ada"),
        (None, "1", who),
    ]
    back = await ask(nc, "config.rollback.assistant", {"revision": 1})
    assert (back["revision"], back["configurations"]) == (3, {"k": "1"})
    assert (await store.value("assistant", "k"), await store.value("assistant", "j")) == ("1", None)


async def test_a_value_of_a_megabyte_reaches_the_agent(running, patient, store, nc, redis) -> None:
    async with following(nc, redis, patient) as agent:
        await store.put("assistant", "large", 'x"\\é' * 350_000)
        await eventually(lambda: len(agent.snapshot.get_setting("large", "")) == 1_400_000)


async def test_many_changes_come_in_order_and_end_at_the_last(running, patient, store, nc, redis) -> None:
    seen = []

    async def on_change(_update, snapshot) -> None:
        seen.append((snapshot.revision, snapshot.get_setting("k", 0)))

    async with following(nc, redis, patient, on_change=on_change) as agent:
        for number in range(1, 201):
            await store.put("assistant", "k", str(number))
        await eventually(lambda: agent.snapshot.get_setting("k", 0) == 200)
        await eventually(lambda: seen[-1][1] == 200)
    assert seen == sorted(seen)


async def test_every_bad_value_of_a_known_key_is_held(running, store, nc) -> None:
    bad = {"max_iterations": "0", "llm_temperature": "hot", "log_level": "loud", "rate_limit": "-1"}
    await ask(nc, "config.schema.assistant", {"schema": schema_of(DurableAgentSettings)})
    for key, value in bad.items():
        await store.put("assistant", key, value)
    await eventually(lambda: running.table.held().get("assistant", {}).keys() == bad.keys())
    assert (await ask(nc, "config.get.assistant"))["configurations"] == {}
