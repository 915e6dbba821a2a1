"""A bad value never reaches an agent, whichever way it came in."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, Field

from perdure.config.keys import DurableAgentSettings
from perdure.config.schema import schema_of
from tests.config_support import PUT, ask, following, manager, messages
from tests.support import eventually


class Mailer(BaseModel):
    retries: int = Field(3, ge=0, le=10)
    smtp_password: str | None = Field(None, json_schema_extra={"secret": True})


class Later(BaseModel):
    retries: str = ""


async def publish(nc, agent: str, model: type[BaseModel]) -> dict[str, Any]:
    return await ask(nc, f"config.schema.{agent}", {"schema": schema_of(model), "instance_id": "i-1"})


async def test_an_agent_publishes_its_schema_when_it_starts(settings, nc, redis) -> None:
    async with manager(settings):
        assert (await ask(nc, "config.schema.assistant"))["error"]["code"] == "not_found"
        async with following(nc, redis, settings):
            reply = await ask(nc, "config.schema.assistant")
    assert reply["schema"] == schema_of(DurableAgentSettings)
    assert reply["schema"]["properties"]["llm_api_key"]["secret"] is True


async def test_a_schema_is_published_when_the_manager_comes_later(settings, nc, redis) -> None:
    quick = settings.model_copy(update={"config_poll_interval": 0.2})
    async with following(nc, redis, quick, patience=0.05), manager(settings):

        async def known() -> bool:
            return (await ask(nc, "config.schema.assistant"))["status"] == "success"

        await eventually(known)


async def test_set_and_rollback_refuse_what_the_agent_would_refuse(settings, nc, pool) -> None:
    async with manager(settings):
        await pool.execute(PUT, "mailer", "retries", "many")
        await publish(nc, "mailer", Mailer)
        refused = await ask(nc, "config.set.mailer", {"configurations": {"retries": "11", "other": "x"}})
        assert refused["error"]["code"] == "invalid_request"
        assert refused["error"]["message"] == "retries must be at most 10"
        refused = await ask(nc, "config.set._global", {"configurations": {"retries": "x"}})
        assert "for agent mailer" in refused["error"]["message"]
        assert (await ask(nc, "config.set.other", {"configurations": {"retries": "x"}}))["status"] == "success"
        assert (await ask(nc, "config.set.mailer", {"configurations": {"retries": 5}}))["status"] == "success"
        refused = await ask(nc, "config.rollback.mailer", {"revision": 1})
        assert "retries must be a whole number" in refused["error"]["message"]


async def test_an_unknown_key_passes_with_a_question_when_it_is_nearly_a_known_one(settings, nc) -> None:
    async with manager(settings):
        await publish(nc, "mailer", Mailer)
        reply = await ask(nc, "config.set.mailer", {"configurations": {"retrys": "5", "my_own": "1"}})
        assert reply["status"] == "success"
        assert reply["warnings"] == ["retrys is not a key of mailer; did you mean retries?"]


async def test_a_bad_value_by_sql_is_held_and_both_revisions_are_told(settings, nc, pool) -> None:
    updates = await messages(nc, "config.update")
    async with manager(settings) as running:
        await publish(nc, "mailer", Mailer)
        await pool.execute(PUT, "mailer", "retries", "4")
        for bad in ("many", "11"):
            await pool.execute(PUT, "mailer", "retries", bad)
        await pool.execute(PUT, "mailer", "other", "applies")
        reply = await ask(nc, "config.get.mailer", {"min_revision": 4})
        assert reply["configurations"] == {"retries": "4", "other": "applies"}
        assert reply["revision"] == 4
        assert reply["held"] == {
            "retries": {"revision": 3, "value_revision": 1, "layer": "mailer", "why": "must be at most 10"}
        }
        health = (await running.health.report())["checks"]["config_held"]
        assert health == {"status": "warning", "text": "1 bad value(s) held back: mailer.retries: must be at most 10"}
        await eventually(lambda: len(updates) == 4)  # each revision is broadcast all the same
        await pool.execute(PUT, "mailer", "retries", "6")
        reply = await ask(nc, "config.get.mailer", {"min_revision": 5})
        assert reply["configurations"]["retries"] == "6"
        assert "held" not in reply


async def test_a_held_row_that_had_no_good_value_leaves_the_layer_below_in_force(settings, nc, pool) -> None:
    async with manager(settings):
        await publish(nc, "mailer", Mailer)
        await pool.execute(PUT, "*", "retries", "2")
        await pool.execute(PUT, "mailer", "retries", "bad")
        reply = await ask(nc, "config.get.mailer", {"min_revision": 2})
        assert reply["configurations"] == {"retries": "2"}
        assert reply["held"]["retries"]["value_revision"] == 0
        await pool.execute("DELETE FROM agent_configurations WHERE agent_name = 'mailer'")
        assert "held" not in await ask(nc, "config.get.mailer", {"min_revision": 3})


async def test_a_bad_global_value_is_held_for_each_agent_it_concerns_alone(settings, nc, pool) -> None:
    async with manager(settings):
        await publish(nc, "mailer", Mailer)
        await pool.execute(PUT, "*", "retries", "1")
        await pool.execute(PUT, "*", "retries", "unlimited")
        assert (await ask(nc, "config.get.mailer", {"min_revision": 2}))["configurations"] == {"retries": "1"}
        assert (await ask(nc, "config.get.other"))["configurations"] == {"retries": "unlimited"}
        await pool.execute(PUT, "mailer", "retries", "9")  # its own good row: the bad one below does not matter
        reply = await ask(nc, "config.get.mailer", {"min_revision": 3})
        assert (reply["configurations"], "held" in reply) == ({"retries": "9"}, False)


async def test_a_hold_is_the_same_after_a_restart_and_on_another_manager(settings, nc, pool) -> None:
    async with manager(settings, instance_id="one") as one:
        await publish(nc, "mailer", Mailer)
        await pool.execute(PUT, "mailer", "retries", "4")
        await pool.execute(PUT, "mailer", "retries", "many")
        await eventually(lambda: one.table.revision == 2)
        async with manager(settings, instance_id="two") as two:
            assert one.table.held() == two.table.held() != {}
            await publish(nc, "mailer", Later)
            await eventually(lambda: one.table.held() == two.table.held() == {})
    async with manager(settings) as after:
        assert after.table.snapshot("mailer").values == {"retries": "many"}


async def test_the_agent_says_rejected_for_what_the_manager_holds(settings, nc, redis, pool) -> None:
    applied = await messages(nc, "config.applied.mailer")
    async with manager(settings), following(nc, redis, settings, "mailer", model=Mailer) as agent:
        await pool.execute(PUT, "mailer", "retries", "11")
        await eventually(lambda: agent.snapshot.revision == 1)
        assert agent.snapshot.get_setting("retries") == 3
        await eventually(lambda: applied[-1]["revision"] == 1)
        assert (applied[-1]["status"], applied[-1]["errors"]) == ("rejected", {"retries": "must be at most 10"})


async def test_a_key_that_a_schema_calls_secret_is_refused_on_every_way_in(settings, nc, pool) -> None:
    async with manager(settings):
        await publish(nc, "mailer", Mailer)
        for subject in ("config.set.mailer", "config.set._global"):
            refused = await ask(nc, subject, {"configurations": {"smtp_password": "hunter2"}})
            assert "secret://env/NAME" in refused["error"]["message"]
            assert "hunter2" not in refused["error"]["message"]
        for layer in ("mailer", "*", "mailer@host"):
            with pytest.raises(Exception, match="is a secret key"):
                await pool.execute(PUT, layer, "smtp_password", "hunter2")
        assert await pool.fetchval("SELECT count(*) FROM config_history") == 0


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"schema": []}, "schema must be"),
        ({"schema": {"properties": []}}, "schema must be"),
        ({"schema": {"properties": {"k": 1}}}, "schema.properties.k"),
    ],
)
async def test_a_schema_that_is_none_is_refused(settings, nc, body, says) -> None:
    async with manager(settings):
        reply = await ask(nc, "config.schema.mailer", body)
        assert (reply["error"]["code"], says in reply["error"]["message"]) == ("invalid_request", True)
        too_large = {"schema": {"properties": {"k": {"description": "x" * 300_000}}}}
        assert (await ask(nc, "config.schema.mailer", too_large))["error"]["code"] == "too_large"


async def test_get_explains_where_each_value_is_from(settings, nc, pool) -> None:
    async with manager(settings):
        await publish(nc, "mailer", Mailer)
        await pool.execute(PUT, "*", "a", "1")
        await pool.execute(PUT, "mailer", "b", "1")
        await pool.execute(PUT, "mailer@h", "c", "1")
        reply = await ask(nc, "config.get.mailer", {"explain": True, "instance_id": "h", "min_revision": 3})
        assert reply["origins"] == {"a": "*", "b": "mailer", "c": "mailer@h"}
        assert reply["defaults"] == {"retries": 3, "smtp_password": None}
