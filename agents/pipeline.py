"""A pipeline without any model: durable microservices that read, check, store and report.

Run it with `perdure agent agents/pipeline.py` and start it with `perdure run pipeline '{"lines": ["3 tea", "x"]}'`.
Kill the process between two lines: it goes on at the line where it was, and no line is stored twice.
"""

from __future__ import annotations

from typing import Any

from perdure import BaseAgent, Context, PermanentError, Retry, StepContext, run_agent, workflow

PRICES = {"tea": 4.5, "cup": 6.0, "pot": 30.0}


class Pipeline(BaseAgent):
    """Lines such as `3 tea` become priced items; a bad line is reported, not fatal."""

    name = "pipeline"

    @workflow
    async def run(self, ctx: Context, task: dict[str, Any]) -> dict[str, Any]:
        """The total of the lines, and what was wrong with the others."""
        lines = task["lines"]
        priced = await ctx.gather(*(self.one(ctx, line) for line in lines))
        total = sum(one["price"] for one in priced if "price" in one)
        await ctx.publish("pipeline.done", {"run_id": ctx.run_id, "total": total})
        return {"total": total, "bad": [one["bad"] for one in priced if "bad" in one]}

    async def one(self, ctx: Context, line: str) -> dict[str, Any]:
        """One line, in a branch of its own: read, then price; each a step with its own retries."""
        read = await ctx.step("read", self.read, line)
        if read is None:
            return {"bad": line}
        return await ctx.step("price", self.price, *read, retry=Retry(max_attempts=5, delay=0.1))

    async def read(self, line: str) -> tuple[int, str] | None:
        """`(count, item)`, or None for a line that is none."""
        count, _, item = line.strip().partition(" ")
        return (int(count), item) if count.isdigit() and item in PRICES else None

    async def price(self, count: int, item: str, step: StepContext) -> dict[str, Any]:
        """What a line costs; a warehouse would be asked here, with `step.idempotency_key`."""
        if count > 1000:
            raise PermanentError(f"nobody buys {count} of {item}")
        await step.progress(1.0, f"{count} {item}")
        return {"price": count * PRICES[item]}


if __name__ == "__main__":
    run_agent(Pipeline)
