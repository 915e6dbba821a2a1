"""deploy/healthcheck.py, by which a container says whether its process is well."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from perdure.bus.service import Service
from perdure.observe.health import Finding

PROGRAM = Path(__file__).resolve().parents[2] / "deploy" / "healthcheck.py"


class Clerk(Service):
    service_name = "clerk"
    needs = frozenset({"nats"})
    finding: Finding = ("ok", "well")

    async def on_start(self) -> None:
        async def look() -> Finding:
            return self.finding

        self.health.add("work", look)


async def check(url: str, name: str, host: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), name),
        env={**os.environ, "NATS_URL": url, "HOSTNAME": host},
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    return process.returncode, err.decode()


@pytest.fixture
async def clerk(settings):
    service = Clerk(settings.model_copy(update={"instance_id": "box-1-abc"}))
    await service.start()
    yield service
    await service.stop()


async def test_a_process_that_is_well_is_said_to_be_well(clerk, settings):
    assert await check(settings.nats_url, "clerk", "box") == (0, "")


async def test_a_process_that_is_critical_is_said_to_be_so(clerk, settings):
    clerk.finding = ("critical", "out of paper")
    code, err = await check(settings.nats_url, "clerk", "box")
    assert code == 1
    assert "out of paper" in err


async def test_the_process_of_another_container_does_not_count(clerk, settings):
    code, err = await check(settings.nats_url, "clerk", "other")
    assert (code, err) == (1, "no instance of clerk on other answers\n")


async def test_nobody_and_no_nats_are_one_line(settings):
    assert await check(settings.nats_url, "clerk", "box") == (1, "no instance of clerk answers\n")
    code, err = await check("nats://127.0.0.1:1", "clerk", "box")
    assert code == 1
    assert err.startswith("NATS cannot be asked")
    assert err.count("\n") == 1
