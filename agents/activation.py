"""Activates phone lines: a tool of several slow steps, while the conversation goes on.

Run it with `perdure agent agents/activation.py`, say "activate line for Anna", and kill every process in the middle:
the work goes on at the step where it was, and the next answer knows the result. The configuration key `step_seconds`
says how long a step takes.
"""

from __future__ import annotations

import zlib

from perdure import Context, DurableAgent, StepContext, run_agent, tool

STEPS = ("check the address", "reserve a number", "program the switch", "ring the line")


async def order(what: str, customer: str, step: StepContext) -> str:
    """One order to the telephone network; its idempotency key makes a repeated order harmless there."""
    await step.progress(0.5, f"{what} for {customer}")
    return f"{what}: done"


@tool(background=True)
async def activate_line(customer: str, ctx: Context) -> str:
    """Activate a phone line for a customer. It takes a while; the result comes later.

    :param customer: whom the line is for

    """
    for done, what in enumerate(STEPS):
        await ctx.progress(done / len(STEPS), what)
        await ctx.step(what, order, what, customer)
        await ctx.sleep(what, ctx.config.get_setting("step_seconds", 1.0))
    return f"the line of {customer} is active, its number is {number_of(customer)}"


@tool
def line_status(customer: str) -> str:
    """Which number a customer's line has, or will have once it is active.

    Args:
        customer: whom the line is for

    """
    return f"the number of {customer} is {number_of(customer)}"


def number_of(customer: str) -> str:
    """A number for each customer, always the same."""
    return f"+39 06 555 {zlib.crc32(customer.strip().lower().encode()) % 10_000:04d}"


agent = DurableAgent(
    name="Activation",
    role="a clerk of a telephone company",
    goal="Activate phone lines and say how far each one is.",
    instructions=[
        "Call activate_line once for each customer who wants a line; it works in the background.",
        "Say what is still at work, and never call a line active before its result is there.",
    ],
    tools=[activate_line, line_status],
)

if __name__ == "__main__":
    run_agent(agent)
