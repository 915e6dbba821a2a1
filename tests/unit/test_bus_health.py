from __future__ import annotations

import asyncio

import pytest

from perdure.observe import health as health_module
from perdure.observe.health import Health, LoopLag


async def ok():
    return "ok", "fine"


async def test_a_process_without_checks_is_well():
    assert await Health().report() == {"status": "ok", "checks": {}}


async def test_the_worst_finding_is_the_status():
    async def warns():
        return "warning", "so so"

    health = Health()
    health.add("a", ok)
    health.add("b", warns)
    assert (await health.report())["status"] == "warning"
    health.tell("config", "critical", "no")
    assert health.status() == "critical"
    assert health.last()["checks"]["config"] == {"status": "critical", "text": "no"}
    health.tell("config", "ok")
    assert health.status() == "warning"


async def test_a_check_that_raises_is_a_finding_no_worse_than_it_may_be():
    async def breaks():
        raise ConnectionError("gone")

    health = Health()
    health.add("cache", breaks, at_worst="warning")
    assert await health.report() == {"status": "warning", "checks": {"cache": {"status": "warning", "text": "gone"}}}


async def test_a_check_that_hangs_does_not_hang_the_report(monkeypatch):
    async def hangs():
        await asyncio.Event().wait()

    monkeypatch.setattr(health_module, "CHECK_TIMEOUT", 0.01)
    health = Health()
    health.add("postgres", hangs)
    assert (await health.report())["checks"]["postgres"]["text"].startswith("no answer")
    assert health.status() == "critical"


@pytest.mark.parametrize(("seconds", "status"), [(0.01, "ok"), (2.0, "warning")])
async def test_a_held_event_loop_is_a_warning(seconds, status):
    lag = LoopLag()
    lag.seen(seconds)
    lag.seen(0.0)
    assert (await lag.check())[0] == status
