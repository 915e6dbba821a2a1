"""`$SRV.PING`, `$SRV.INFO` and `$SRV.STATS` as ADR-32 has them, seen by a client that knows nothing of Perdure."""

from __future__ import annotations

import re

import orjson
import pytest
from nats.micro.service import EndpointStats, ServiceInfo, ServicePing, ServiceStats

from perdure.bus.service import Service
from perdure.errors import NotFound


class Clerk(Service):
    service_name = "clerk"
    description = "answers"
    needs = frozenset({"nats"})

    async def on_start(self):
        await self.endpoint("echo", "clerk.echo", self.echo, queue="clerks", metadata={"shape": "any"})

    async def echo(self, request):
        if request.json().get("bad"):
            raise NotFound("nothing there")
        return request.json()


@pytest.fixture
async def clerk(settings, monkeypatch):
    monkeypatch.setenv("PERDURE_PROCESS", "clerk-1")
    service = Clerk(settings)
    await service.start()
    yield service
    await service.stop()


async def ask(nc, subject):
    return orjson.loads((await nc.request(subject, b"", timeout=5)).data)


@pytest.mark.parametrize("verb", ["PING", "INFO", "STATS"])
async def test_every_verb_is_answered_for_all_for_the_name_and_for_the_instance(nc, clerk, verb):
    for address in ("", ".clerk", f".clerk.{clerk.instance_id}"):
        reply = await ask(nc, f"$SRV.{verb}{address}")
        assert reply["type"] == f"io.nats.micro.v1.{verb.lower()}_response"
        assert (reply["name"], reply["id"]) == ("clerk", clerk.instance_id)
        assert re.fullmatch(r"\d+\.\d+\.\d+.*", reply["version"])
        assert reply["metadata"] == {"process": "clerk-1", "instance": clerk.instance_id}


async def test_info_lists_the_endpoints(nc, clerk):
    reply = await ask(nc, "$SRV.INFO.clerk")
    assert reply["description"] == "answers"
    assert reply["endpoints"] == [
        {"name": "echo", "subject": "clerk.echo", "queue_group": "clerks", "metadata": {"shape": "any"}},
        {
            "name": "health",
            "subject": f"health.clerk.{clerk.instance_id}",
            "queue_group": "",
            "metadata": {},
        },
    ]


async def test_stats_count_requests_and_errors_and_carry_the_health(nc, clerk):
    await nc.request("clerk.echo", b"{}", timeout=5)
    await nc.request("clerk.echo", b'{"bad": 1}', timeout=5)
    reply = await ask(nc, "$SRV.STATS.clerk")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", reply["started"])
    echo, health = reply["endpoints"]
    assert (echo["num_requests"], echo["num_errors"]) == (2, 1)
    assert echo["last_error"] == "not_found: nothing there"
    assert echo["processing_time"] >= echo["average_processing_time"] > 0
    assert health["data"]["status"] == "ok"


async def test_a_client_of_the_protocol_reads_the_answers(nc, clerk):
    ping = ServicePing.from_dict(await ask(nc, "$SRV.PING"))
    info = ServiceInfo.from_dict(await ask(nc, "$SRV.INFO"))
    stats = ServiceStats.from_dict(await ask(nc, "$SRV.STATS"))
    assert ping.id == info.id == stats.id == clerk.instance_id
    assert isinstance(stats.endpoints[0], EndpointStats)


async def test_an_error_has_the_body_and_the_headers_of_the_contract(nc, clerk):
    reply = await nc.request("clerk.echo", b'{"bad": 1}', timeout=5)
    assert orjson.loads(reply.data) == {
        "status": "error",
        "error": {"code": "not_found", "message": "nothing there"},
    }
    assert reply.headers == {"Nats-Service-Error": "nothing there", "Nats-Service-Error-Code": "404"}


async def test_a_body_that_is_no_json_is_an_invalid_request(nc, clerk):
    reply = await nc.request("clerk.echo", b"{", timeout=5)
    assert orjson.loads(reply.data)["error"]["code"] == "invalid_request"
    assert reply.headers["Nats-Service-Error-Code"] == "400"


async def test_a_service_name_that_breaks_subjects_is_refused(settings):
    class Odd(Clerk):
        service_name = "a.b"

    with pytest.raises(ValueError, match="A-Za-z0-9_-"):
        await Odd(settings).start()
