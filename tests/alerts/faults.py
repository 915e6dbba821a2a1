"""How each alert is brought about: faults in waves, those of one wave at once. A fault lasts until it is cancelled."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp

from perdure.errors import ApiError
from tests.alerts.stand import Stand

FOREVER = 10_000.0
WRITE = (
    "INSERT INTO agent_configurations (agent_name, config_key, config_value) VALUES ($1, $2, $3) "
    "ON CONFLICT (agent_name, config_key) DO UPDATE SET config_value = excluded.config_value"
)


@dataclass(frozen=True)
class Fault:
    """What is done, and the alerts that it shall bring, each with labels that say where."""

    name: str
    make: Callable[[Stand], Awaitable[None]]
    alerts: dict[str, dict[str, str]] = field(default_factory=dict)


async def _flood(stand: Stand, agent: str, task: object, *, every: float, **more: object) -> None:
    while True:
        with suppress(ApiError, TimeoutError):
            await stand.client.start(agent, task, **more)  # type: ignore[arg-type]
        await asyncio.sleep(every)


async def _fails(stand: Stand) -> None:
    await _flood(stand, "failing", 1, every=0.2)


async def _kills(stand: Stand) -> None:
    await stand.client.start("killer", 1)
    await asyncio.sleep(FOREVER)


async def _changed_code(stand: Stand) -> None:
    file = stand.folder / "step"
    file.write_text("before")
    run = await stand.client.start("shop", str(file), workflow="changes")
    while (await run.details())["status"] != "waiting":
        await asyncio.sleep(0.1)
    file.write_text("after")
    await run.signal("go", 1)
    await asyncio.sleep(FOREVER)


async def _nobody(stand: Stand) -> None:
    run = await stand.client.start("nobody", 1)
    try:
        await asyncio.sleep(FOREVER)
    finally:
        await run.cancel("nobody takes it")


async def _holds(stand: Stand) -> None:
    await _flood(stand, "holder", 1.5, every=5.0)


async def _bad_value(stand: Stand) -> None:
    await stand.write(WRITE, "talker", "max_iterations", "many")
    try:
        await asyncio.sleep(FOREVER)
    finally:
        await stand.write(WRITE, "talker", "max_iterations", "5")


async def _sick_model(stand: Stand) -> None:
    values = {"llm_base_url": f"{stand.receiver}/v1", "llm_provider": "openai", "llm_model": "sick"}
    await stand.client.request("config.set.talker", {"configurations": values})
    await _flood(stand, "talker", "hello", every=2.0)


async def _bad_messages(stand: Stand) -> None:
    while True:
        await stand.nc.publish("alerts.orders", b"this is no JSON")
        await asyncio.sleep(2)


async def _spends(stand: Stand) -> None:
    await stand.client.request("config.set.spender", {"configurations": {"budget_session_tokens": 1}})
    await _flood(stand, "spender", "hello", every=2.0, session_id="talk")


async def _touched_log(stand: Stand) -> None:
    run = await stand.client.start("nobody", 3)
    await run.cancel("an act")  # which is in the log, and soon sealed
    act = None
    while act is None:
        await asyncio.sleep(0.2)
        async with stand.alone:
            act = await stand.sql.fetchval(
                "SELECT ids[1] FROM audit_seals WHERE chain = 'acts' ORDER BY seq DESC LIMIT 1"
            )
    touch = "UPDATE audit_log SET subject = reverse(subject) WHERE audit_id = $1"
    await stand.write("ALTER TABLE audit_log DISABLE TRIGGER audit_log_refuse")
    try:
        await stand.write(touch, act)
        await asyncio.sleep(FOREVER)
    finally:
        await stand.write(touch, act)
        await stand.write("ALTER TABLE audit_log ENABLE TRIGGER audit_log_refuse")


async def _refused_callbacks(stand: Stand) -> None:
    await _flood(stand, "shop", 1, every=2.0, callback=f"{stand.receiver}/refuses")


async def _hanging_callbacks(stand: Stand) -> None:
    for number in range(160):
        await stand.client.start("shop", number, callback=f"{stand.receiver}/hangs")
    try:
        await asyncio.sleep(FOREVER)
    finally:
        await stand.write("DELETE FROM callbacks WHERE target::text LIKE '%hangs%'")


async def _sheds(stand: Stand) -> None:
    run = await stand.client.start("nobody", 2, start_at=None, delay=3600)
    url = f"{stand.door}/runs/{run.run_id}/events"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http, http.get(url), http.get(url):
        while True:
            async with http.get(url) as reply:
                assert reply.status == 429, reply.status
            await asyncio.sleep(0.3)


async def _long_drain(stand: Stand) -> None:
    while True:
        run = await stand.client.start("stubborn", 60)
        while (await run.details())["status"] != "running":
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        stand.process("agent-stubborn").send_signal(signal.SIGTERM)
        await asyncio.sleep(FOREVER)


async def _locked_journal(stand: Stand) -> None:
    while True:
        async with stand.sql.transaction():
            await stand.sql.execute("LOCK TABLE journal IN SHARE ROW EXCLUSIVE MODE")
            await asyncio.sleep(0.9)
        await asyncio.sleep(0.1)


async def _locked_runs(stand: Stand) -> None:
    async with stand.sql.transaction():
        await stand.sql.execute("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")
        await asyncio.sleep(FOREVER)


def _hangs(part: str) -> Callable[[Stand], Awaitable[None]]:
    async def make(stand: Stand) -> None:
        with stand.stopped(part):
            await asyncio.sleep(FOREVER)

    return make


async def _no_scheduler(stand: Stand) -> None:
    async def asks(http: aiohttp.ClientSession) -> None:
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with http.post(f"{stand.door}/agents/shop/run", json={"task": 1}) as reply:
                    await reply.read()
            await asyncio.sleep(0.1)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http, asyncio.TaskGroup() as group:
        group.create_task(_hangs("scheduler")(stand))
        for _ in range(8):
            group.create_task(asks(http))


WAVES: tuple[tuple[Fault, ...], ...] = (
    (
        Fault("runs whose workflow raises", _fails, {"PerdureRunsFail": {"agent": "failing"}}),
        Fault("a run that kills its process", _kills, {"PerdureRunsDie": {}, "PerdureProcessesAreLost": {}}),
        Fault("a waiting run whose code changed", _changed_code, {"PerdureRunsNeedAPerson": {"agent": "shop"}}),
        Fault("a run for an agent that is not there", _nobody, {"PerdureRunsWait": {"agent": "nobody"}}),
        Fault("blocking code in an async step", _holds, {"PerdureEventLoopHeld": {"part": "agent-holder"}}),
        Fault("a value that is none", _bad_value, {"PerdureConfigHeld": {"agent": "talker"}}),
        Fault(
            "a model that answers 500",
            _sick_model,
            {"PerdureModelFails": {"agent": "talker"}, "PerdureModelLeftAlone": {"agent": "talker"}},
        ),
        Fault("a budget that is used up", _spends, {"PerdureBudgetSpent": {"agent": "spender"}}),
        Fault("an audit log that was touched", _touched_log, {"PerdureAuditBroken": {"chain": "acts"}}),
        Fault("messages that are no tasks", _bad_messages, {"PerdureDeadLetters": {"agent": "shop"}}),
        Fault("a receiver that refuses", _refused_callbacks, {"PerdureCallbacksGivenUp": {}}),
        Fault("a receiver that hangs", _hanging_callbacks, {"PerdureCallbacksLate": {}}),
        Fault("more event streams than may be read", _sheds, {"PerdureGatewaySheds": {"part": "gateway"}}),
        Fault("a drain that a step holds up", _long_drain, {"PerdureNotReady": {"part": "agent-stubborn"}}),
    ),
    (Fault("a journal that is locked", _locked_journal, {"PerdureJournalSlow": {"agent": "shop"}}),),
    (Fault("a table that somebody locks", _locked_runs, {"PerdurePoolUsedUp": {"part": "scheduler"}}),),
    (Fault("an agent that hangs", _hangs("agent-shop"), {"PerdureProcessDown": {"part": "agent-shop"}}),),
    (
        Fault(
            "a ConfigManager that hangs",
            _hangs("config_manager"),
            {"PerdureConfigStale": {"agent": "shop"}, "PerdureConfigNotBroadcast": {}},
        ),
    ),
    (Fault("a scheduler that hangs", _no_scheduler, {"PerdureNoScheduler": {}, "PerdureGatewayFails": {}}),),
    (Fault("a Redis that hangs", _hangs("redis"), {"PerdureRedisAway": {"part": "scheduler"}}),),
    (Fault("a NATS that hangs", _hangs("nats"), {"PerdureNatsAway": {"part": "agent-shop"}}),),
    (Fault("a Postgres that hangs", _hangs("postgres"), {"PerdurePostgresAway": {"part": "scheduler"}}),),
)


@asynccontextmanager
async def made(stand: Stand, faults: tuple[Fault, ...]) -> AsyncIterator[None]:
    """The faults, until the block ends; then they are mended."""
    tasks = {asyncio.create_task(fault.make(stand), name=fault.name) for fault in faults}  # type: ignore[arg-type]
    try:
        yield
        for each in tasks:
            if each.done():
                each.result()
    finally:
        for each in tasks:
            each.cancel()
        for each in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(each, Exception):
                raise each
