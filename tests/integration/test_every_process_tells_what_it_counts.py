"""Metrics: each process has a port, what is told is in the catalogue, and labels stay few whatever callers send."""

from __future__ import annotations

import re
import socket

import aiohttp
import pytest
from ruamel.yaml import YAML

from config_manager.service import ConfigManager
from perdure import BaseAgent, Context, RetryableError, workflow
from perdure.agent.durable import DurableAgent
from perdure.agent.tools import tool
from perdure.errors import RunFailed, SetupError
from perdure.llm.types import ModelReply, ToolRequest
from perdure.observe.catalogue import CATALOGUE
from perdure.observe.metrics import MOST_LABELS, Bounded, Metrics
from perdure.testing.models import ScriptedModel
from services.scheduler.service import Scheduler
from tests.docs import ROOT
from tests.edge_support import web
from tests.platform import InProcess, in_process
from tests.promql import selectors
from tests.support import eventually

RULES = ROOT / "deploy" / "prometheus" / "rules" / "perdure.yml"


class Prices(BaseAgent):
    tries = 0

    @workflow
    async def run(self, ctx: Context, task: str) -> str:
        return await ctx.step("price", self.price, task)

    async def price(self, task: str) -> str:
        type(self).tries += 1
        if task == "again" and self.tries == 1:
            raise RetryableError("once more", retry_after=0.01)
        if task == "bad":
            raise ValueError("no such file")
        return task


@pytest.fixture
async def platform(settings, nc):
    """A platform whose processes tell their metrics on free ports."""
    Prices.tries = 0
    async with in_process(settings.model_copy(update={"metrics_port": 0}), nc, Prices) as made:
        yield made


async def get(service, path="/metrics"):
    """The status and the text of an answer of a process's port."""
    url = service.metadata()["metrics"].removesuffix("/metrics") + path
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def samples(service):
    """Every sample of a process: `name{labels}` to its value."""
    _, text = await get(service)
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }


def of(platform: InProcess, kind: type):
    return next(service for service in platform.services if isinstance(service, kind) or type(service) is kind)


async def test_what_runs_and_steps_do_is_counted(platform):
    agent = platform.services[-1]
    assert (await platform.ask("prices", "a"))["output"] == "a"
    assert (await platform.ask("prices", "again"))["output"] == "again"
    with pytest.raises(RunFailed):
        await platform.ask("prices", "bad")

    async def counted():
        await agent.health.report()
        found = await samples(agent)
        assert found['perdure_runs_left_total{agent="prices",status="failed"}'] == 1
        assert found['perdure_lease_held{agent="prices"}'] == 1
        assert found["perdure_nats_connected"] == 1
        assert found['perdure_health_status{check="postgres"}'] == 0
        return found

    found = await eventually(counted)
    assert found['perdure_runs_left_total{agent="prices",status="completed"}'] == 2
    assert found['perdure_runs_started_total{agent="prices"}'] == 3
    assert found['perdure_runs_claimed_total{agent="prices"}'] >= 3  # a run that waits for its next try leaves memory
    assert found['perdure_run_seconds_count{agent="prices"}'] == 3
    assert found['perdure_step_failures_total{agent="prices",outcome="retried"}'] >= 1
    assert found['perdure_step_failures_total{agent="prices",outcome="failed"}'] == 1
    started = found['perdure_steps_started_total{agent="prices"}']
    assert started >= 4
    assert found['perdure_journal_rows_total{agent="prices"}'] >= 4
    assert found['perdure_journal_commit_seconds_count{agent="prices"}'] >= 1
    assert found["process_resident_memory_bytes"] > 1_000_000

    scheduler = await samples(of(platform, Scheduler))
    assert scheduler['perdure_runs_accepted_total{result="accepted"}'] == 3
    assert scheduler['perdure_nats_requests_total{endpoint="ask"}'] == 3
    assert scheduler['perdure_nats_request_errors_total{code="run_failed",endpoint="ask"}'] == 1
    assert scheduler['perdure_nats_request_seconds_count{endpoint="ask"}'] == 3


async def test_configuration_is_counted_on_both_sides(platform, pool):
    agent, manager = platform.services[-1], of(platform, ConfigManager)
    await platform.request("config.set.prices", {"configurations": {"log_level": "info"}})

    async def live():
        return (await samples(agent))['perdure_config_revision{agent="prices"}'] >= 1

    await eventually(live)
    found = await samples(manager)
    assert found["perdure_config_table_revision"] >= 1
    assert found["perdure_config_leading"] == found["perdure_config_listening"] == 1
    assert (await samples(agent))['perdure_config_held_keys{agent="prices"}'] == 0


async def test_an_agent_says_that_it_hears_no_config_manager_and_that_it_does_again(settings, nc):
    changed = settings.model_copy(update={"metrics_port": 0, "config_poll_interval": 0.1})
    async with in_process(changed, nc, Prices) as platform:
        agent = platform.services[-1]

        async def stale(wanted):
            return (await samples(agent))['perdure_config_stale{agent="prices"}'] == wanted

        assert await stale(0)
        await platform.services.pop(0).stop()
        await eventually(lambda: stale(1))
        report = await agent.health.report()
        assert report["checks"]["config"]["text"].startswith("no ConfigManager answers")
        await platform.start(ConfigManager(changed.model_copy(update={"instance_id": "another"})))
        await eventually(lambda: stale(0))


async def test_calls_of_models_and_tools_are_counted_and_invented_tools_are_one_label(settings, nc):
    @tool
    async def lookup(order: str) -> str:
        "Status of an order."
        return f"{order} is on its way"

    def calls(*names):
        asked = [ToolRequest(f"c{at}", name, '{"order": "7"}') for at, name in enumerate(names)]
        return ModelReply("", "tools", asked, model="m-1", provider="p", input_tokens=10, output_tokens=2, cost=0.5)

    model = ScriptedModel(calls("lookup", "invented-1", "invented-2"), "done")
    agent = DurableAgent("clerk", model=model, tools=[lookup])
    async with in_process(settings.model_copy(update={"metrics_port": 0}), nc, agent) as platform:
        assert (await platform.ask("clerk", "where is order 7?"))["output"] == "done"
        found = await samples(platform.services[-1])
    assert found['perdure_tool_calls_total{agent="clerk",outcome="ok",tool="lookup"}'] == 1
    assert found['perdure_tool_calls_total{agent="clerk",outcome="error",tool="other"}'] == 2
    assert not [name for name in found if "invented" in name]
    assert found['perdure_model_requests_total{agent="clerk",model="m-1",outcome="ok",provider="p"}'] == 1
    assert found['perdure_model_tokens_total{agent="clerk",model="m-1",provider="p",type="input"}'] == 10
    assert found['perdure_model_cost_total{agent="clerk",model="m-1",provider="p"}'] == 0.5


async def test_runs_that_nobody_takes_are_shown_by_agent_with_their_age(platform):
    run_id = await platform.start_run("nobody", "x")
    scheduler = of(platform, Scheduler)

    async def shown():
        found = await samples(scheduler)
        return found.get('perdure_runs_pending{agent="nobody"}') == 1

    backlog = next(source.__self__ for source in scheduler.metrics._sources if "Backlog" in source.__qualname__)
    await backlog.look()
    await eventually(shown)
    assert (await samples(scheduler))['perdure_runs_pending_oldest_seconds{agent="nobody"}'] >= 0
    assert (await samples(scheduler))["perdure_callbacks_due"] == 0
    await platform.request("run.terminate", {"run_id": run_id})
    await backlog.look()
    assert (await samples(scheduler))['perdure_runs_pending{agent="nobody"}'] == 0


async def test_names_that_callers_make_up_do_not_become_endless_series(platform):
    scheduler = of(platform, Scheduler)
    backlog = next(source.__self__ for source in scheduler.metrics._sources if "Backlog" in source.__qualname__)
    for number in range(MOST_LABELS + 20):
        await platform.start_run(f"made-up-{number}", "x")
    await backlog.look()
    found = await samples(scheduler)
    shown = [name for name in found if name.startswith("perdure_runs_pending{")]
    assert len(shown) <= MOST_LABELS + 1
    assert sum(found[name] for name in shown) == MOST_LABELS + 20


async def test_every_metric_and_label_that_is_told_is_in_the_catalogue(platform):
    await platform.ask("prices", "a")
    run = re.compile(r"[0-9a-f]{32}")
    for service in platform.services:
        _, text = await get(service)
        assert not run.search(text)
        for family, kind in re.findall(r"^# TYPE (perdure_\w+) (\w+)$", text, re.MULTILINE):
            assert CATALOGUE[family].kind == kind
        for name, labels in re.findall(r"^(perdure_\w+?)(?:_bucket|_sum|_count)?\{(.*)\} ", text, re.MULTILINE):
            told = set(re.findall(r'(\w+)="', labels)) - {"le"}
            assert told == set(CATALOGUE[name].labels), name


async def test_every_series_that_an_alert_asks_for_is_told_before_its_fault(platform, settings):
    """Prometheus sees no growth in a series that begins with its first count: those must be there from the start."""
    await platform.ask("prices", "a")
    rules = YAML(typ="safe").load(RULES)["groups"][0]["rules"]
    async with web(settings.model_copy(update={"metrics_port": 0}), platform) as door:
        await door.get("/agents")
        backlog = next(s.__self__ for s in of(platform, Scheduler).metrics._sources if "Backlog" in s.__qualname__)
        await platform.start_run("nobody", "x")
        await backlog.look()
        texts = [(await get(service))[1] for service in (*platform.services, door.gateway)]
    told = [
        (name, dict(re.findall(r'(\w+)="([^"]*)"', labels)))
        for text in texts
        for name, labels in re.findall(r"^(\w+?)(?:\{(.*)\})? ", text, re.MULTILINE)
    ]
    for rule in rules:
        for name, matchers in selectors(rule["expr"]):
            if name == "up" or name.startswith("perdure_model_"):  # Prometheus' own; an agent with a model has those
                continue
            wanted = [(label, value) for label, operator, value in matchers if (label, value) != ("status", "5..")]
            assert [
                labels
                for each, labels in told
                if each == name and all(re.fullmatch(value, labels.get(label, "")) for label, value in wanted)
            ], f"{rule['alert']}: nobody tells {name} with {wanted}"


async def test_a_port_that_is_taken_is_replaced_and_the_registration_says_by_which(settings, nc):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with in_process(settings.model_copy(update={"metrics_port": port}), nc) as platform:
            urls = {service.metadata()["metrics"] for service in platform.services}
            assert len(urls) == 2
            assert not [url for url in urls if f":{port}/" in url]
            reply = await nc.request("$SRV.PING.scheduler", b"", timeout=20)
            assert of(platform, Scheduler).metadata()["metrics"].encode() in reply.data
            assert (await get(of(platform, Scheduler)))[0] == 200


async def test_without_a_port_nothing_listens_and_nothing_is_told(settings, nc):
    async with in_process(settings, nc) as platform:
        assert all("metrics" not in service.metadata() for service in platform.services)


async def test_an_address_that_is_not_this_machines_is_refused_with_the_fix(settings, nc):
    changed = settings.model_copy(update={"metrics_port": 0, "metrics_host": "192.0.2.1"})
    with pytest.raises(SetupError, match=r"PERDURE_METRICS_HOST '192\.0\.2\.1'.*Use 127\.0\.0\.1"):
        async with in_process(changed, nc):
            raise AssertionError


async def test_a_process_says_whether_it_is_alive_and_whether_it_can_work(platform):
    scheduler = of(platform, Scheduler)
    assert (await get(scheduler, "/healthz"))[0] == 200

    async def well():
        status, text = await get(scheduler, "/readyz")
        return status == 200 and '"postgres": "ok"' in text

    await eventually(well)
    scheduler.health.tell("disk", "critical", "postgresql://u:hunter2@db is full")
    status, text = await get(scheduler, "/readyz")
    assert status == 503
    assert "hunter2" not in text
    assert (await get(scheduler, "/healthz"))[0] == 200
    assert (await samples(scheduler))['perdure_health_status{check="disk"}'] == 2


def test_counts_of_two_sources_with_the_same_labels_are_added():
    metrics = Metrics()
    metrics.add(lambda: [("perdure_timers_fired_total", (), 2), ("perdure_ready", (), 0)])
    metrics.add(lambda: [("perdure_timers_fired_total", (), 3), ("perdure_ready", (), 1)])
    assert metrics.read() == {"perdure_timers_fired_total": {(): 5}, "perdure_ready": {(): 1}}


def test_a_label_that_others_choose_is_bounded():
    counts = Bounded()
    for number in range(10 * MOST_LABELS):
        counts.add(str(number))
    assert len(counts) == MOST_LABELS + 1
    assert counts["other"] == 9 * MOST_LABELS


def test_names_follow_the_conventions():
    for name, metric in CATALOGUE.items():
        assert re.fullmatch(r"perdure_[a-z_]+", name)
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert metric.kind not in ("histogram", "summary") or name.endswith(("_seconds", "_bytes")), name
        assert not {"run_id", "session_id", "tenant", "instance"} & set(metric.labels)
        assert metric.help.endswith(".")
