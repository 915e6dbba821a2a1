"""A process in Consul: the same suite on the fake and, when CONSUL_HTTP_ADDR is set, on a real agent."""

from __future__ import annotations

import asyncio
import os
import ssl
from uuid import uuid4

import aiohttp
import pytest
import trustme
from pydantic import BaseModel

from perdure import BaseAgent, Context, workflow
from perdure.bus.service import Service
from perdure.observe.consul import ConsulRegistration
from perdure.observe.health import Health
from perdure.settings import Settings
from perdure.testing.consul import FakeConsul
from tests.edge_support import web
from tests.platform import in_process
from tests.support import eventually

REAL = os.environ.get("CONSUL_HTTP_ADDR")


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.skipif(not REAL, reason="no Consul given"))])
async def address(request):
    if request.param == "real":
        yield REAL
        return
    async with FakeConsul() as fake:
        yield fake.address


@pytest.fixture
async def fake(monkeypatch):
    monkeypatch.delenv("CONSUL_HTTP_TOKEN", raising=False)
    async with FakeConsul() as made:
        yield made


@pytest.fixture
async def running():
    """Starts registrations and ends them after the test."""
    started = []

    def run(registration):
        started.append((registration, asyncio.create_task(registration.run())))
        return started[-1][1]

    yield run
    for registration, task in started:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await registration.deregister()


def register(address, *, health=None, meta=None, ttl=3.0, token=None, name=None):
    return ConsulRegistration(
        Settings(consul_http_addr=address, consul_http_token=token),
        name=name or f"tester-{uuid4().hex[:8]}",
        instance_id="i-1",
        health=(health or Health()).report,
        meta=lambda: dict(meta if meta is not None else {"version": "1"}),
        tags=("perdure",),
        ttl=ttl,
    )


async def entries(address, name):
    base = address if "//" in address else f"http://{address}"
    async with aiohttp.ClientSession() as session, session.get(f"{base}/v1/health/service/{name}") as response:
        return await response.json()


async def check(address, registration):
    """The TTL check as Consul has it, or None."""
    for entry in await entries(address, registration._name):
        for each in entry["Checks"]:
            if each["CheckID"] == registration.check_id:
                return each
    return None


async def status(address, registration):
    found = await check(address, registration)
    return found and found["Status"]


async def becomes(address, registration, wanted):
    async def is_it():
        return await status(address, registration) == wanted

    await eventually(is_it, message=f"{registration.service_id} becomes {wanted}")


async def test_a_process_is_found_with_its_tags_and_meta(address, running):
    registration = register(address, meta={"version": "1", "config_revision": "7", "instance": "i-1"})
    running(registration)
    await becomes(address, registration, "passing")
    (entry,) = await entries(address, registration._name)
    assert entry["Service"]["ID"] == registration.service_id
    assert entry["Service"]["Tags"] == ["perdure"]
    assert entry["Service"]["Meta"] == {"version": "1", "config_revision": "7", "instance": "i-1"}


async def test_the_check_follows_the_health_and_says_why(address, running):
    health = Health()
    registration = register(address, health=health, ttl=0.6)
    running(registration)
    await becomes(address, registration, "passing")
    health.tell("config", "warning", "max_iterations is held")
    await becomes(address, registration, "warning")
    assert "config: max_iterations is held" in (await check(address, registration))["Output"]
    health.tell("nats", "critical", "not connected")
    await becomes(address, registration, "critical")
    health.tell("nats", "ok")
    health.tell("config", "ok")
    await becomes(address, registration, "passing")


async def test_a_process_that_starts_ill_is_never_shown_as_well(fake, running):
    health = Health()
    health.tell("config", "warning", "held")
    registration = register(fake.address, health=health)
    running(registration)
    await eventually(lambda: check(fake.address, registration))
    assert set(fake.told) == {"warning"}


async def test_a_process_that_beats_no_more_becomes_critical(address, running):
    registration = register(address, ttl=0.9)
    task = running(registration)
    await becomes(address, registration, "passing")
    task.cancel()
    await becomes(address, registration, "critical")


async def test_a_process_that_deregisters_is_gone(address, running):
    registration = register(address)
    task = running(registration)
    await becomes(address, registration, "passing")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await registration.deregister()
    assert await entries(address, registration._name) == []


async def test_a_changed_meta_is_shown(address, running):
    meta = {"config_revision": "1"}
    registration = register(address, meta=meta, ttl=0.6)
    running(registration)
    await becomes(address, registration, "passing")
    meta["config_revision"] = "2"

    async def shown():
        (entry,) = await entries(address, registration._name)
        return entry["Service"]["Meta"] == {"config_revision": "2"}

    await eventually(shown)


async def test_a_process_that_consul_forgot_registers_again(fake, running):
    registration = register(fake.address, ttl=0.6)
    running(registration)
    await becomes(fake.address, registration, "passing")
    fake.forget()
    assert await entries(fake.address, registration._name) == []
    await becomes(fake.address, registration, "passing")


async def test_a_consul_that_comes_later_is_used_then(running):
    fake = FakeConsul()
    await fake.start()
    address = fake.address
    await fake.stop()
    registration = register(address, ttl=0.3)
    running(registration)
    await eventually(lambda: not registration._reachable)
    await fake.start(int(address.rpartition(":")[2]))
    try:
        await becomes(address, registration, "passing")
    finally:
        await fake.stop()


async def test_a_consul_with_errors_is_logged_once_per_change(fake, running):
    from structlog.testing import capture_logs

    fake.broken = True
    with capture_logs() as lines:
        registration = register(fake.address, ttl=0.15)
        running(registration)
        await eventually(lambda: fake.requests >= 4)
        fake.broken = False
        await becomes(fake.address, registration, "passing")
        await eventually(lambda: len(lines) >= 3)  # Consul has it before we have its answer
    actions = [line["action"] for line in lines]
    assert actions == ["consul.unreachable", "consul.registered", "consul.reachable"]


async def test_without_an_address_nothing_is_done():
    registration = register(None)
    await registration.run()
    await registration.deregister()


@pytest.mark.parametrize("address", ["unix:///run/consul.sock", "http://", "127.0.0.1:notaport"])
async def test_an_unusable_address_is_said_and_stops_nobody(address):
    from structlog.testing import capture_logs

    with capture_logs() as lines:
        await register(address).run()
    assert [line["action"] for line in lines] == ["consul.bad_address"]


async def test_the_token_travels_as_a_header(fake, running):
    registration = register(fake.address, token="acl-token")
    running(registration)
    await becomes(fake.address, registration, "passing")
    assert fake.tokens == {"acl-token"}


async def test_a_service_is_in_consul_from_start_to_drain(settings, fake):
    class Clerk(Service):
        service_name = "clerk"
        needs = frozenset({"nats"})

    service = Clerk(settings.model_copy(update={"consul_http_addr": fake.address}))
    await service.start()
    await eventually(lambda: entries(fake.address, "clerk"))
    (entry,) = await entries(fake.address, "clerk")
    assert entry["Service"]["Meta"]["instance"] == service.instance_id
    assert entry["Service"]["Meta"]["version"] == service.version
    await service.stop()
    assert await entries(fake.address, "clerk") == []


async def test_every_process_of_a_platform_is_there_with_its_version_and_revision(settings, nc, fake):
    class Clerk(BaseAgent):
        @workflow
        async def run(self, ctx: Context, task: str) -> str:
            return task

    said = settings.model_copy(update={"consul_http_addr": fake.address})
    async with in_process(said, nc, Clerk) as platform, web(said, platform) as door:
        await platform.request("config.set.clerk", {"configurations": {"log_level": "info"}})
        for name in ("config-manager", "scheduler", "clerk", "gateway"):
            (entry,) = await eventually(lambda name=name: entries(fake.address, name), message=name)
            assert entry["Service"]["Meta"]["version"]
            assert "config_revision" in entry["Service"]["Meta"]
        (entry,) = await entries(fake.address, "gateway")
        assert (entry["Service"]["Address"], entry["Service"]["Port"]) == ("127.0.0.1", door.gateway.port)

        async def asked(wanted: str) -> bool:
            (entry,) = await entries(fake.address, "gateway")
            checks = {each["CheckID"].rpartition("-")[2]: each["Status"] for each in entry["Checks"]}
            assert checks["ttl"] in ("passing", "warning")  # a machine that is busy may hold its loop
            return checks["http"] == wanted

        await eventually(lambda: asked("passing"))
        door.gateway.door.stopping.set()  # it takes no more requests: Consul sees so itself
        await eventually(lambda: asked("critical"))
    assert (await call(fake, "GET", "/v1/agent/services"))[1] == {}


async def test_a_held_value_makes_the_agent_a_warning_and_never_critical(settings, nc, pool):
    class Clerk(BaseAgent):
        class Settings(BaseModel):
            pace: int = 1

        @workflow
        async def run(self, ctx: Context, task: str) -> str:
            return task

    async with in_process(settings, nc, Clerk) as platform:
        agent = platform.services[-1]
        await pool.execute("INSERT INTO agent_configurations VALUES ('clerk', 'pace', 'fast')")

        async def warned():
            report = await agent.health.report()
            held = report["checks"]["config"]
            return (report["status"], held["status"]) == ("warning", "warning") and "pace is held" in held["text"]

        await eventually(warned)
        await pool.execute("UPDATE agent_configurations SET config_value = '2' WHERE agent_name = 'clerk'")

        async def well():
            checks = (await agent.health.report())["checks"]
            return checks["config"]["status"] == checks["lease"]["status"] == "ok"

        await eventually(well)


async def test_consul_over_tls_is_believed_by_its_authority_alone(running, monkeypatch, tmp_path):
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), authority.issue_cert("perdure")
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    fake = FakeConsul()
    await fake.start(tls=server)
    try:
        address = f"https://{fake.address}"
        stranger = register(address, ttl=0.3)
        running(stranger)
        await eventually(lambda: not stranger._reachable, timeout=30)
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        client.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
        monkeypatch.setenv("CONSUL_CACERT", str(tmp_path / "ca.pem"))
        monkeypatch.setenv("CONSUL_CLIENT_CERT", str(tmp_path / "client.pem"))
        monkeypatch.setenv("CONSUL_CLIENT_KEY", str(tmp_path / "client.pem"))
        known = register(address, ttl=0.3)
        running(known)
        await eventually(lambda: known.service_id in fake._services, timeout=30)
        assert stranger.service_id not in fake._services
        monkeypatch.setenv("CONSUL_CACERT", str(tmp_path / "nowhere.pem"))
        from structlog.testing import capture_logs

        with capture_logs() as lines:
            await register(address).run()
        (said,) = [line["error"] for line in lines if line["action"] == "consul.bad_address"]  # the others go on
        assert "CONSUL_CACERT" in said
        monkeypatch.setenv("CONSUL_CACERT", str(tmp_path / "ca.pem"))
    finally:
        for name in ("CONSUL_CACERT", "CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY"):
            monkeypatch.delenv(name)
        await fake.stop()


# -- the fake itself, as Consul's HTTP API is documented ---------------------------------------------------------------
async def call(fake, method, path, body=None):
    url = f"http://{fake.address}{path}"
    async with aiohttp.ClientSession() as session, session.request(method, url, json=body) as response:
        is_json = response.content_type == "application/json"
        return response.status, await response.json() if is_json else await response.text()


async def test_the_fake_expires_a_ttl_and_drops_a_service_that_stays_critical():
    now = 0.0
    async with FakeConsul(clock=lambda: now) as fake:
        ttl = {"TTL": "30s", "DeregisterCriticalServiceAfter": "10m", "Status": "passing"}
        assert (await call(fake, "PUT", "/v1/agent/service/register", {"Name": "a", "Check": ttl}))[0] == 200
        now = 29.0
        (entry,) = (await call(fake, "GET", "/v1/health/service/a?passing=1"))[1]
        assert entry["Checks"][0]["CheckID"] == "service:a"
        now = 31.0
        assert (await call(fake, "GET", "/v1/health/service/a?passing=1"))[1] == []
        assert (await call(fake, "GET", "/v1/health/service/a"))[1][0]["Checks"][0]["Status"] == "critical"
        now = 29.0 + 600
        assert list((await call(fake, "GET", "/v1/agent/services"))[1]) == ["a"]
        now = 31.0 + 600
        assert (await call(fake, "GET", "/v1/agent/services"))[1] == {}


async def test_the_fake_knows_no_check_and_no_service_that_was_not_registered(fake):
    for path in ("check/pass/x", "check/warn/x", "check/fail/x", "service/deregister/x"):
        assert (await call(fake, "PUT", f"/v1/agent/{path}"))[0] == 404
    assert (await call(fake, "PUT", "/v1/agent/check/update/x", {"Status": "passing"}))[0] == 404
    assert (await call(fake, "PUT", "/v1/agent/check/update/x", {"Status": "odd"}))[0] == 400
    assert (await call(fake, "PUT", "/v1/agent/service/register", {}))[0] == 400


async def test_the_fake_lists_the_catalog_with_the_tags_of_all_instances(fake):
    for instance, tag in (("1", "x"), ("2", "y")):
        body = {"Name": "a", "ID": f"a-{instance}", "Tags": [tag]}
        await call(fake, "PUT", "/v1/agent/service/register", body)
    assert (await call(fake, "GET", "/v1/catalog/services"))[1] == {"consul": [], "a": ["x", "y"]}
