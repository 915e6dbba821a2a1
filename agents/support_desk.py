"""A support desk: conversations that last, refunds that a person approves, and a hand-off to a specialist.

Run it with `perdure agent agents/support_desk.py` and talk with `perdure chat support-desk --session anna`.
Say `refund "A-17" 30` and decide with `perdure runs approve RUN_ID`; kill the process while it waits: nothing is lost,
and the refund is paid once.
"""

from __future__ import annotations

from perdure import DurableAgent, StepContext, run_agent, tool

ORDERS = {"A-17": "a teapot, delivered, 30 euros", "B-4": "two cups, on the way, 12 euros"}


@tool
def order_status(order: str) -> str:
    """What is known of an order.

    Args:
        order: its number, such as A-17

    """
    return ORDERS.get(order.upper().strip(), f"there is no order {order}")


@tool(requires_approval=True)
async def refund(order: str, amount: float, step: StepContext) -> str:
    """Pay money back for an order. A person decides first.

    :param order: its number, such as A-17
    :param amount: how much, in euros

    """
    if order.upper().strip() not in ORDERS:
        raise LookupError(f"there is no order {order}")
    # a real bank takes the key, so that a repeated call pays once
    return f"{amount:.2f} euros for {order} are on their way (reference {step.idempotency_key[-8:]})"


engineer = DurableAgent(
    name="support-engineer",
    role="an engineer who knows teapots",
    goal="Solve technical problems.",
    instructions=["Ask for what you need to know, one thing at a time."],
)

agent = DurableAgent(
    name="support-desk",
    role="a friendly clerk of a tea shop",
    goal="Help customers with their orders.",
    instructions=[
        "Look an order up before you speak about it.",
        "Offer a refund only for orders that were delivered.",
        "Hand technical questions over to the engineer.",
    ],
    tools=[order_status, refund],
    handoffs=[engineer],
)

if __name__ == "__main__":
    run_agent(agent)
