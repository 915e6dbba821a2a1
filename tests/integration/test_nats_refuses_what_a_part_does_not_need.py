"""Every forbidden act of every NATS user is refused by a real server with the shipped files; every needed one works."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

import orjson
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError

from perdure import subjects
from perdure.bus import permissions
from perdure.bus.streams import ensure_streams
from perdure.settings import Settings
from perdure.store.postgres import Pool
from tests.docs import ROOT
from tests.secured import ADMIN, SecuredNats, answering, as_user, named, restricted_nats
from tests.secured_platform import STREAM, over_nats_alone, secured_platform, users, walk
from tests.support import temporary_folder

RUN = "r-1"
# What each user may not do: the act, and why it would be wrong.
FORBIDDEN = {
    "assistant": [
        ("publish", "config.update", "tell agents of a change that was none"),
        ("publish", "config.set.assistant", "change configuration, its own too"),
        ("publish", "config.rollback.assistant", "change it back"),
        ("publish", "config.get.mailer", "read another agent's configuration"),
        ("publish", "config.get", "the same, with the name in the message"),
        ("publish", "config.list", "read who has configuration"),
        ("publish", "config.applied.mailer", "speak for another agent"),
        ("publish", "config.schema.mailer", "say what another agent's settings are"),
        ("subscribe", "config.get.>", "answer for the ConfigManager"),
        ("subscribe", "config.applied.*", "hear what others applied"),
        ("subscribe", "_INBOX.>", "read the replies of people's programs"),
        ("subscribe", "_REPLY.>", "read everybody's replies"),
        ("subscribe", "_REPLY.mailer.>", "read another agent's replies"),
        ("subscribe", "_REPLY.scheduler.>", "read the scheduler's replies"),
        ("publish", "_REPLY.mailer.x", "answer in another's place"),
        ("subscribe", "work.mailer", "hear another agent's wake-ups"),
        ("subscribe", ">", "hear everything"),
        ("subscribe", "run.start.*", "take runs in the scheduler's place"),
        ("subscribe", "run.ask.*", "answer in the scheduler's place"),
        ("subscribe", "run.ended.*.*", "read the ends of others' runs"),
        ("publish", "run.ended.mailer.r-1", "tell the end of another agent's run"),
        ("publish", "run.start.mailer", "start runs of others outside of its own runs"),
        ("publish", "run.get", "read any run"),
        ("publish", "run.list", "list runs"),
        ("publish", "run.cancel", "cancel any run"),
        ("publish", "run.approve", "approve tool calls, its own too"),
        ("publish", "run.signal", "signal any run"),
        ("publish", "session.history", "read any conversation"),
        ("publish", "schedule.set", "make schedules"),
        ("publish", "payload.get", "read any large value"),
        ("publish", "task.mailer", "give others tasks"),
        ("subscribe", "task.>", "read tasks"),
        ("subscribe", "process.mailer.i-1.1.nudge", "hear what another agent's process is told"),
        ("subscribe", "agents.prompt.mailer.perdure.*", "take another agent's prompts"),
        ("subscribe", "health.mailer.*", "answer for another agent's health"),
        ("subscribe", "$SRV.PING.mailer", "be found in another's place"),
        ("publish", "$JS.API.STREAM.DELETE.WORK", "delete a stream"),
        ("publish", "$JS.API.STREAM.PURGE.WORK", "empty a stream"),
        ("publish", "$JS.API.STREAM.CREATE.MINE", "make a stream"),
        ("publish", "$JS.API.STREAM.UPDATE.WORK", "change a stream"),
        ("publish", "$JS.API.STREAM.MSG.GET.WORK", "read a stream by sequence"),
        ("publish", "$JS.API.DIRECT.GET.RUN_EVENTS", "read past events of any run"),
        ("publish", "$JS.API.CONSUMER.MSG.NEXT.WORK.mailer", "take from another agent's queue"),
        ("publish", "$JS.API.CONSUMER.MSG.NEXT.TASKS.scheduler", "take tasks before they are runs"),
        ("publish", "$JS.API.CONSUMER.CREATE.WORK.mailer.work.mailer", "make another agent's consumer"),
        ("publish", "$JS.API.CONSUMER.CREATE.WORK.assistant.work.mailer", "point its consumer at another's queue"),
        ("publish", "$JS.API.CONSUMER.CREATE.WORK.assistant", "the same, by a request without a filter"),
        ("publish", "$JS.API.CONSUMER.CREATE.WORK", "the same, without a name"),
        ("publish", "$JS.API.CONSUMER.DURABLE.CREATE.WORK.assistant", "the same, by the older request"),
        ("publish", "$JS.API.CONSUMER.CREATE.RUN_EVENTS.assistant.run.events.r-1", "consume events"),
        ("publish", "$JS.API.CONSUMER.DELETE.WORK.mailer", "delete another agent's consumer"),
        ("publish", "$JS.ACK.WORK.mailer.1.1.1.1.1", "ack another agent's wake-up"),
        ("publish", "$SYS.REQ.SERVER.PING", "ask the server's own account"),
    ],
    "config-manager": [
        ("publish", "run.start.assistant", "start runs"),
        ("publish", "work.assistant", "wake agents"),
        ("publish", "run.events.r-1", "tell events"),
        ("subscribe", "run.events.*", "read events"),
        ("subscribe", "run.start.*", "take runs"),
        ("subscribe", "_REPLY.assistant.>", "read an agent's replies"),
        ("publish", "$JS.API.STREAM.INFO.WORK", "use JetStream"),
    ],
    "scheduler": [
        ("publish", "config.update", "tell agents of a change"),
        ("publish", "config.set.assistant", "change configuration"),
        ("subscribe", "config.get.>", "answer for the ConfigManager"),
        ("subscribe", "_REPLY.gateway.>", "read the gateway's replies"),
        ("publish", "orders.new", "tell ends where nobody said that it may"),
        ("publish", "$JS.API.STREAM.DELETE.WORK", "delete a stream"),
        ("publish", "$JS.API.STREAM.PURGE.RUN_EVENTS", "empty a stream"),
        ("publish", "$JS.API.CONSUMER.MSG.NEXT.WORK.assistant", "take an agent's wake-ups"),
    ],
    "gateway": [
        ("publish", "config.update", "tell agents of a change"),
        ("publish", "config.rollout.assistant", "begin a rollout"),
        ("publish", "work.assistant", "wake agents"),
        ("publish", "run.events.r-1", "tell events"),
        ("publish", "run.ended.assistant.r-1", "tell ends"),
        ("publish", "task.assistant", "go past the scheduler"),
        ("subscribe", "run.start.*", "take runs"),
        ("subscribe", "_REPLY.operator.>", "read people's replies"),
        ("publish", "_REPLY.operator.x", "answer in another's place"),
        ("publish", "$JS.API.STREAM.DELETE.RUN_EVENTS", "delete a stream"),
    ],
    "console": [
        ("publish", "run.get", "read runs: it asks the gateway, with the key of whoever looks"),
        ("publish", "config.get.assistant", "read configuration"),
        ("subscribe", "run.events.*", "read events"),
        ("subscribe", "_REPLY.gateway.>", "read the gateway's replies"),
        ("publish", "_REPLY.gateway.x", "answer in another's place"),
    ],
    "client": [
        ("publish", "config.set.assistant", "change configuration"),
        ("publish", "config.get.assistant", "read configuration"),
        ("publish", "config.update", "tell agents of a change"),
        ("publish", "run.approve", "approve tool calls"),
        ("publish", "run.bulk", "steer many runs at once"),
        ("publish", "run.terminate", "end runs without their code"),
        ("publish", "schedule.set", "make schedules"),
        ("publish", "work.assistant", "wake agents"),
        ("publish", "run.events.r-1", "tell events"),
        ("subscribe", "_REPLY.gateway.>", "read the gateway's replies"),
        ("subscribe", "_REPLY.operator.>", "read the replies of the command line"),
        ("subscribe", "_REPLY.>", "read everybody's replies"),
        ("subscribe", "config.update", "hear of configuration"),
        ("publish", "$JS.API.STREAM.DELETE.TASKS", "delete a stream"),
        ("publish", "$JS.API.CONSUMER.MSG.NEXT.TASKS.scheduler", "take tasks"),
    ],
    "operator": [
        ("publish", "config.update", "tell agents of a change that was none"),
        ("publish", "run.events.r-1", "tell events"),
        ("publish", "work.assistant", "wake agents"),
        ("subscribe", "_REPLY.scheduler.>", "read the scheduler's replies"),
        ("subscribe", "run.start.*", "take runs"),
        ("publish", "$JS.API.STREAM.DELETE.WORK", "delete a stream"),
    ],
}


@pytest.fixture
async def server() -> AsyncIterator[SecuredNats]:
    with temporary_folder("secured") as home:
        async with restricted_nats(home, permissions.agent("assistant"), permissions.agent("mailer")) as made:
            yield made


@pytest.mark.parametrize("user", list(FORBIDDEN))
async def test_what_a_user_may_not_do_is_refused_and_what_it_needs_is_not(server: SecuredNats, user: str):
    may = {each.user: each for each in [*permissions.services(), permissions.agent("assistant")]}[user]
    async with as_user(server.url, user) as one:
        done = [f"{verb} {subject}: {why}" for verb, subject, why in FORBIDDEN[user] if await one.tries(verb, subject)]
        assert done == []
        needed = [("publish", each) for each in may.publish] + [("subscribe", each) for each in may.subscribe]
        refused = [each for each in needed if not await one.tries(*each)]
        # A pattern itself cannot be published on; subjects of it can.
        assert [each for each in refused if "*" not in each[1] and ">" not in each[1]] == []
        for _, pattern in refused:
            assert await one.tries("publish", pattern.replace("*", "x").replace(">", "x"))


@pytest.mark.parametrize("store", ["postgres", "nats"])
async def test_a_platform_whose_parts_are_users_of_their_own_does_all_it_is_for(
    settings: Settings, pool: Pool, store: Literal["postgres", "nats"]
):
    bucket = store == "nats"
    with temporary_folder("secured") as home:
        async with restricted_nats(home, *users(bucket=bucket), bucket=bucket) as server:

            def place(user: str) -> Settings:
                return named(settings, user, nats_url=server.url, instance_id=f"{user}-1", payload_store=store)

            async with as_user(server.url, ADMIN) as admin:
                await admin.nc.jetstream().add_stream(name=STREAM, subjects=["orders.*"])
                await admin.nc.publish("orders.new", b'{"item": "tea"}')
            async with secured_platform(place) as door:
                await walk(door, place)
                async with as_user(server.url, "client", inbox_prefix="_INBOX") as one:  # as any NATS client
                    await over_nats_alone(one.nc)
                    assert one.refused == []
            assert (await pool.fetchval("SELECT count(*) FROM payloads WHERE body IS NULL") > 0) == bucket


async def test_every_subject_of_the_platform_is_somebodys(server: SecuredNats):
    """A subject that is new must be given to whoever needs it: here it is noticed."""
    everybody = [*permissions.services(), permissions.agent("assistant")]
    said = " ".join(each for user in everybody for each in (*user.publish, *user.subscribe))
    roots = {value for name, value in vars(subjects).items() if name.isupper() and isinstance(value, str)}
    assert {root for root in roots if "." in root and root not in said} == set()


async def test_nobody_gets_in_without_a_password(server: SecuredNats):
    for who in ({"user": "assistant", "password": "wrong"}, {"user": "nobody", "password": "p-nobody"}, {}):
        client = Client()
        with pytest.raises(NatsError, match="Authorization Violation"):
            await client.connect(server.url, allow_reconnect=False, error_cb=_quiet, **who)
        await client.close()


async def _quiet(_error: Exception) -> None:
    """What is refused is raised, too."""


async def test_an_agent_hears_its_own_replies_alone(server: SecuredNats):
    async with as_user(server.url, "assistant") as one, as_user(server.url, "config-manager") as answers:
        await answering(answers.nc, "config.get.>", b"yours")
        assert (await one.nc.request("config.get.assistant", b"", timeout=2)).data == b"yours"
        assert one.refused == [] == answers.refused


@pytest.mark.parametrize("user", ["client", "operator"])
async def test_any_nats_client_of_people_gets_its_replies(server: SecuredNats, user: str):
    async with as_user(server.url, user, inbox_prefix="_INBOX") as one, as_user(server.url, "scheduler") as answers:
        await answering(answers.nc, "run.ask.*", b"done")
        assert (await one.nc.request("run.ask.assistant", b"{}", timeout=2)).data == b"done"
        assert one.refused == [] == answers.refused


async def test_a_queue_is_consumed_by_its_own_agent_alone(server: SecuredNats):
    async with as_user(server.url, "scheduler") as scheduler, as_user(server.url, "mailer") as mailer:
        await ensure_streams(scheduler.nc.jetstream())
        await scheduler.nc.publish("work.assistant", b"secret")
        await scheduler.nc.flush()
        config = {
            "name": "mailer",
            "durable_name": "mailer",
            "filter_subject": "work.assistant",
            "ack_policy": "explicit",
        }
        # The request for its own consumer, with another's queue within: the server compares.
        body = orjson.dumps({"stream_name": "WORK", "config": config})
        said = orjson.loads((await mailer.nc.request("$JS.API.CONSUMER.CREATE.WORK.mailer.work.mailer", body)).data)
        assert "error" in said
        assert mailer.refused == []


def test_the_shipped_users_are_those_of_the_table():
    shipped = (ROOT / "deploy" / "nats" / "users.conf").read_text()
    agents = [permissions.agent(name) for name in ("activation", "assistant", "research-team")]
    assert (
        shipped.partition("authorization")[2]
        == permissions.render([*permissions.services(), *agents]).partition("authorization")[2]
    )
