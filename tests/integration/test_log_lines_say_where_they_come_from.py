"""The lines of a run, whoever wrote them, say which run, step, agent and trace they belong to; their level is live."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
import structlog
from nats.aio.client import Client as Nats

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow
from perdure.observe.logging import setup_logging
from perdure.settings import Settings
from perdure.store.postgres import Pool
from tests.otlp import Collector
from tests.platform import in_process
from tests.support import eventually

Lines = Callable[[str], list[dict[str, Any]]]


class Writer(BaseAgent):
    name = "writer"

    @workflow
    async def run(self, ctx: Context, task: str) -> str:
        self.logger.info("by the workflow")
        await ctx.step("here", self.here)
        await ctx.step("thread", self.there)
        return task

    async def here(self) -> None:
        self.logger.info("by the agent's logger", action="writer.wrote")
        self.logger.debug("by the way")
        structlog.get_logger("mine").info("by another logger")
        logging.getLogger("a.library").warning("by a library")

    def there(self) -> None:
        logging.getLogger("a.library").warning("by a thread")


@pytest.fixture
def lines(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """Logging as a process has it; the lines with this text."""
    root = logging.getLogger()
    before, level, config = root.handlers, root.level, structlog.get_config()
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    setup_logging(settings.model_copy(update={"log_format": "json", "instance_id": "i-1"}), service="writer")
    yield lambda text: [each for each in map(orjson.loads, stream.getvalue().splitlines()) if each["event"] == text]
    root.handlers = before
    root.setLevel(level)
    structlog.configure(**config)


@pytest.mark.in_memory
async def test_every_line_of_a_step_says_where_it_comes_from(settings: Settings, nc: Nats, lines: Lines):
    async with Collector() as collector:
        traced = settings.model_copy(update={"otel_exporter_otlp_endpoint": collector.url})
        async with in_process(traced, nc, Writer) as platform:
            run_id = (await platform.ask("writer", "x"))["run_id"]
    steps = {"by the workflow": None, "by a thread": "thread"}
    for text in (*steps, "by the agent's logger", "by another logger", "by a library"):
        [line] = lines(text)
        step = steps.get(text, "here")
        assert (line["run_id"], line["agent"], line.get("step")) == (run_id, "writer", step), text
        assert (line["service"], line["instance"]) == ("writer", "i-1")
        assert line["action"]
        assert len(line["trace_id"]) == 32


async def test_a_row_of_configuration_changes_the_level_of_a_process_that_runs(
    settings: Settings, nc: Nats, pool: Pool, lines: Lines
):
    async with in_process(settings, nc, Writer) as platform:
        await platform.ask("writer", "x")
        assert not lines("by the way")
        await pool.execute("INSERT INTO agent_configurations VALUES ('writer', 'log_level', 'debug')")
        await eventually(lambda: logging.getLogger().level == logging.DEBUG)
        await platform.ask("writer", "x")
        assert [line["level"] for line in lines("by the way")] == ["debug"]
