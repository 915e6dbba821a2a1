from __future__ import annotations

from typing import ClassVar

from perdure import BaseAgent, on_config, workflow
from tests.integration.agent_support import configure
from tests.platform import in_process
from tests.support import eventually


class Greeter(BaseAgent):
    name = "greeter"
    seen: ClassVar[list[tuple[str, object, object]]] = []

    @workflow
    async def run(self, ctx, task):
        return ctx.config.get_setting("greeting", "hello")

    @on_config("greeting")
    async def greeting_changed(self, key, old, new):
        type(self).seen.append((key, old, new))

    @on_config("colour")
    async def colour_changed(self, key, old, new):
        raise RuntimeError("no colours here")


async def test_a_marked_method_hears_old_and_new_and_a_failing_one_undoes_nothing(settings, nc, pool):
    applied = await nc.subscribe("config.applied.greeter")
    async with in_process(settings, nc, Greeter) as platform:
        await configure(pool, "greeter", greeting="ahoy")
        await eventually(lambda: Greeter.seen == [("greeting", None, "ahoy")])
        await configure(pool, "greeter", colour="red")
        told = None
        while told is None or "colour" not in str(told):
            told = (await applied.next_msg(timeout=10)).data
        assert b"no colours here" in told
        assert (await platform.ask("greeter", {}))["output"] == "ahoy"
        assert Greeter.seen == [("greeting", None, "ahoy")]
