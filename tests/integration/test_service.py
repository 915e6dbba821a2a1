from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import nats
import pytest
from nats.js.api import RetentionPolicy, StreamConfig

from perdure.bus.connection import connect
from perdure.bus.service import Service
from perdure.bus.streams import STREAMS, ensure_streams
from perdure.bus.wire import request
from perdure.errors import InternalError, NotFound, SetupError, TooLarge, Unavailable
from tests.support import eventually

ROOT = str(Path(__file__).parents[2])


class Keeper(Service):
    """A service that reads a table as it starts."""

    service_name = "keeper"
    needs = frozenset({"postgres"})

    async def on_start(self):
        await self.pool.fetch("SELECT FROM processes")


class Worker(Service):
    service_name = "worker"
    needs = frozenset({"nats"})

    def __init__(self, settings):
        super().__init__(settings)
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.seen = []

    async def on_start(self):
        for name in ("echo", "slow", "broken", "big", "missing"):
            await self.endpoint(name, f"worker.{name}", getattr(self, name), queue="workers")

    async def on_stop(self):
        self.seen.append("on_stop")

    async def on_reconnect(self):
        self.seen.append("on_reconnect")

    async def echo(self, request):
        return request.json()

    async def slow(self, _request):
        self.entered.set()
        await self.gate.wait()
        self.seen.append("slow done")
        return {"slow": True}

    async def broken(self, _request):
        raise ValueError("hunter2")

    async def big(self, _request):
        return {"x": "x" * 2_000_000}

    async def missing(self, _request):
        raise NotFound("no such thing")


async def test_a_database_without_tables_or_with_older_ones_is_refused_with_the_command(settings, pool):
    bare = settings.model_copy(update={"database_url": settings.database_url.rpartition("/")[0] + "/postgres"})
    with pytest.raises(SetupError, match="no tables of Perdure yet; run `perdure migrate`"):
        await Keeper(bare).start()
    await pool.execute("ALTER TABLE processes RENAME TO another")
    with pytest.raises(SetupError, match=r"lacks tables of this version.*processes.*run `perdure migrate`"):
        await Keeper(settings).start()


@pytest.fixture
async def worker(settings):
    service = Worker(settings)
    await service.start()
    yield service
    service.gate.set()
    await service.stop()


async def test_a_request_is_answered_and_an_error_raised_as_what_it_is(nc, worker):
    assert await request(nc, "worker.echo", {"a": 1}) == {"a": 1}
    with pytest.raises(NotFound, match="no such thing"):
        await request(nc, "worker.missing", {})
    with pytest.raises(InternalError) as caught:
        await request(nc, "worker.broken", {})
    assert "hunter2" not in str(caught.value)


async def test_a_reply_too_large_for_nats_is_an_error_and_the_connection_stays(nc, worker):
    with pytest.raises(TooLarge):
        await request(nc, "worker.big", {})
    assert await request(nc, "worker.echo", {"still": "here"}) == {"still": "here"}
    assert worker.nats.stats["reconnects"] == 0


async def test_a_request_too_large_for_nats_is_refused_before_it_is_sent(nc, worker):
    with pytest.raises(TooLarge):
        await request(nc, "worker.echo", {"x": "x" * 2_000_000})


async def test_a_subject_that_nobody_answers_is_unavailable(nc):
    with pytest.raises(Unavailable, match="nobody answers"):
        await request(nc, "nobody.home", {})


async def test_an_answer_that_does_not_come_is_unavailable(nc, worker):
    with pytest.raises(Unavailable, match="may still have been done"):
        await request(nc, "worker.slow", {}, timeout=0.05)


async def test_a_slow_request_does_not_hold_up_others_of_its_endpoint(nc, worker):
    slow = asyncio.create_task(request(nc, "worker.slow", {}))
    await worker.entered.wait()
    assert await request(nc, "worker.echo", {"n": 1}) == {"n": 1}
    worker.gate.set()
    assert await slow == {"slow": True}


async def refused(nc, subject):
    try:
        await request(nc, subject, {})
    except Unavailable:
        return True
    return False


async def test_stopping_finishes_running_requests_before_anything_is_closed(nc, worker):
    slow = asyncio.create_task(request(nc, "worker.slow", {}))
    await worker.entered.wait()
    stopping = asyncio.create_task(worker.stop())
    await eventually(lambda: not worker.ready)
    await eventually(lambda: refused(nc, "worker.echo"))
    worker.gate.set()
    assert await slow == {"slow": True}
    await stopping
    assert worker.seen == ["slow done", "on_stop"]
    assert worker.nats.is_closed


async def test_a_request_that_outlives_the_drain_timeout_is_answered_unavailable(nc, settings):
    service = Worker(settings.model_copy(update={"drain_timeout": 0.1}))
    await service.start()
    slow = asyncio.create_task(request(nc, "worker.slow", {}))
    await service.entered.wait()
    await service.stop()
    with pytest.raises(Unavailable, match="stopped before the work was done"):
        await slow


async def test_stop_may_be_called_twice_and_before_start(settings):
    service = Worker(settings)
    await service.stop()
    await service.stop()
    started = Worker(settings)
    await started.start()
    await asyncio.gather(started.stop(), started.stop())
    assert started.seen == ["on_stop"]


async def test_endpoints_answer_again_after_the_server_was_killed(servers, nc, worker):
    await servers.nats.kill()
    await eventually(lambda: not worker.nats.is_connected)
    assert (await worker.health.report())["checks"]["nats"]["status"] == "critical"
    await servers.nats.start()
    await eventually(lambda: worker.seen == ["on_reconnect"] and nc.is_connected)
    await worker.nats.flush()  # until the server has read its subscriptions, a request finds nobody
    assert await request(nc, "worker.echo", {"back": 1}) == {"back": 1}


async def test_a_service_stops_while_the_server_is_away(servers, worker):
    await servers.nats.kill()
    await eventually(lambda: not worker.nats.is_connected)
    await worker.stop()
    assert worker.nats.is_closed


async def test_a_server_that_is_not_there_is_named_with_the_fix(settings, monkeypatch):
    monkeypatch.setattr("perdure.bus.connection.CONNECT_PATIENCE", 0.2)
    nowhere = settings.model_copy(update={"nats_url": "nats://u:hunter2@127.0.0.1:1"})
    with pytest.raises(SetupError, match=r"127\.0\.0\.1:1 cannot be used.*Check NATS_URL") as caught:
        await connect(nowhere, "test")
    assert "hunter2" not in str(caught.value)


async def test_a_start_that_fails_leaves_nothing_open(settings):
    class Broken(Worker):
        async def on_start(self):
            raise SetupError("no")

    service = Broken(settings)
    with pytest.raises(SetupError, match="no"):
        await service.start()
    assert service.nats.is_closed


async def test_a_loop_that_fails_begins_anew_and_is_shown_in_the_health(worker):
    tries = []

    async def loop():
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("stumbled")

    await worker.spawn(loop, name="stumbler")
    assert len(tries) == 3
    report = await worker.health.report()
    assert report["checks"]["background"] == {"status": "warning", "text": "stumbler failed: stumbled"}


async def test_loops_are_cancelled_after_on_stop(settings):
    order = []

    class Looping(Worker):
        async def on_stop(self):
            order.append("on_stop")

    async def loop():
        try:
            await asyncio.Event().wait()
        finally:
            order.append("loop ended")

    service = Looping(settings)
    await service.start()
    service.spawn(loop, name="loop")
    await asyncio.sleep(0)
    await service.stop()
    assert order == ["on_stop", "loop ended"]


async def test_an_on_stop_that_fails_does_not_keep_the_service_open(settings):
    class Broken(Worker):
        async def on_stop(self):
            raise ValueError("no")

    service = Broken(settings)
    await service.start()
    await service.stop()
    assert service.nats.is_closed


async def test_the_health_covers_what_the_service_needs(settings, nc):
    class Whole(Service):
        service_name = "whole"

    service = Whole(settings)
    await service.start()
    try:
        report = await request(nc, f"health.whole.{service.instance_id}", {})
        assert report["status"] == "ok"
        assert {"nats", "postgres", "redis", "event_loop"} <= report["checks"].keys()
    finally:
        await service.stop()


async def test_a_redis_that_is_down_is_a_warning_and_stops_nobody(settings, servers):
    class Cached(Service):
        service_name = "cached"
        needs = frozenset({"nats", "redis"})

    await servers.redis.kill()
    service = Cached(settings)
    await service.start()
    try:
        assert (await service.health.report())["checks"]["redis"]["status"] == "warning"
        assert service.health.status() == "warning"
    finally:
        await service.stop()


# -- streams -----------------------------------------------------------------------------------------------------------
async def test_many_processes_may_make_the_streams_at_once(nc):
    await asyncio.gather(*(ensure_streams(nc.jetstream()) for _ in range(8)))
    assert {info.config.name for info in await nc.jetstream().streams_info()} == {"WORK", "TASKS", "RUN_EVENTS"}


async def test_no_stream_answers_a_request_subject(nc):
    await ensure_streams(nc.jetstream())
    for subject in ("run.start.a", "run.ask.a", "run.get", "config.get.a", "health.a.b", "process.p.nudge"):
        with pytest.raises(nats.errors.NoRespondersError):
            await nc.request(subject, b"{}", timeout=2)


async def test_a_stream_that_someone_changed_is_set_back(nc):
    js = nc.jetstream()
    await ensure_streams(js)
    config = (await js.stream_info("RUN_EVENTS")).config
    config.max_msgs_per_subject = 5
    await js.update_stream(config)
    await ensure_streams(js)
    assert (await js.stream_info("RUN_EVENTS")).config.max_msgs_per_subject == 10_000


async def test_streams_that_are_as_they_should_be_are_left_alone(nc):
    js = nc.jetstream()
    await ensure_streams(js)
    heard = []

    async def note(msg):
        heard.append(msg.subject)

    await nc.subscribe("$JS.API.STREAM.UPDATE.>", cb=note)
    await ensure_streams(js)
    await nc.flush()
    assert heard == []


async def test_a_stream_of_another_retention_is_refused_with_the_fix(nc):
    js = nc.jetstream()
    await js.add_stream(StreamConfig(name="WORK", subjects=["work.>"], retention=RetentionPolicy.LIMITS))
    with pytest.raises(SetupError, match="nats stream rm WORK"):
        await ensure_streams(js)


async def test_a_full_tasks_stream_refuses_and_drops_nothing(nc):
    js = nc.jetstream()
    await ensure_streams(js)
    config = (await js.stream_info("TASKS")).config
    config.max_msgs = 2
    await js.update_stream(config)
    for number in range(2):
        await js.publish("task.a", b"%d" % number)
    with pytest.raises(nats.js.errors.APIError):
        await js.publish("task.a", b"too much")
    assert (await js.stream_info("TASKS")).state.messages == 2


async def test_a_repeated_wake_up_is_delivered_again(nc):
    js = nc.jetstream()
    await ensure_streams(js)
    await js.publish("work.a", b"run-1")
    await js.publish("work.a", b"run-1")
    assert (await js.stream_info("WORK")).state.messages == 2


async def test_every_stream_is_bounded():
    assert all(stream.max_bytes and stream.max_bytes > 0 for stream in STREAMS)


# -- the process -------------------------------------------------------------------------------------------------------
PROGRAM = """
import asyncio
from perdure.bus.service import Service, serve
class Worker(Service):
    service_name = "worker"
    needs = frozenset({"nats"})
    async def on_start(self):
        await self.endpoint("slow", "worker.slow", self.slow, queue="workers")
    async def slow(self, request):
        await self.nats.publish("worker.entered", b"")
        await self.nats.flush()
        await asyncio.sleep(float(request.json()["seconds"]))
        return {"slow": True}
serve(Worker())
"""


@pytest.fixture
async def process(settings):
    environment = {"PATH": os.environ["PATH"], "NATS_URL": settings.nats_url, "PYTHONPATH": ROOT}
    made = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, env=environment, stderr=asyncio.subprocess.PIPE
    )
    yield made
    if made.returncode is None:
        made.kill()
        await made.wait()


async def found(nc):
    try:
        return await nc.request("$SRV.PING.worker", b"", timeout=1)
    except nats.errors.Error:
        return None


async def enter(nc, seconds):
    """A request that the process is working on."""
    entered = await nc.subscribe("worker.entered")
    await nc.flush()
    running = asyncio.create_task(request(nc, "worker.slow", {"seconds": seconds}, timeout=20))
    await entered.next_msg(timeout=10)
    return running


async def test_sigterm_finishes_the_running_request_and_exits_with_0(nc, process):
    await eventually(lambda: found(nc), timeout=20)
    running = await enter(nc, 0.3)
    process.send_signal(signal.SIGTERM)
    assert await running == {"slow": True}
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, errors.decode()
    assert b"service.stopped" in errors


async def test_a_second_sigterm_ends_the_process_at_once(nc, process):
    await eventually(lambda: found(nc), timeout=20)
    running = await enter(nc, 3600)
    process.send_signal(signal.SIGTERM)
    line = b""
    while b"service.draining" not in line:
        line = await asyncio.wait_for(process.stderr.readline(), 10)
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 10) == 128 + signal.SIGTERM
    running.cancel()


async def test_a_process_without_a_server_says_so_in_one_line_and_exits_with_1(process, servers, settings):
    environment = {"PATH": os.environ["PATH"], "NATS_URL": "nats://127.0.0.1:1", "PYTHONPATH": ROOT}
    program = PROGRAM.replace(
        "import asyncio", "import asyncio, perdure.bus.connection as c; c.CONNECT_PATIENCE = 0.2", 1
    )
    lost = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(lost.communicate(), 20)
    assert lost.returncode == 1
    assert b"Traceback" not in errors
    assert b"Check NATS_URL" in errors
