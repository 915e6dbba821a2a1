"""An agent with a model inside its process that takes MODEL_SECONDS: none, and what is left is the platform's; or some,
as models do, and the agent waits while the machine has time.
"""

from __future__ import annotations

import asyncio
import os

from perdure import DurableAgent, run_agent
from perdure.llm.types import ModelReply, ModelRequest

SECONDS = float(os.environ["MODEL_SECONDS"])
SHOWN = int(os.environ.get("MODEL_SHOWN", "20"))  # messages of the conversation


class Own:
    """Answers after `SECONDS`."""

    async def complete(self, request: ModelRequest, *, on_delta: object = None) -> ModelReply:  # noqa: ARG002 -- a Model
        """Wait, and say how long the conversation is."""
        if SECONDS:
            await asyncio.sleep(SECONDS)
        return ModelReply(f"{len(request.messages)} messages", "answer")


if __name__ == "__main__":
    run_agent(DurableAgent("waiter", model=Own(), stream=False, history_max_messages=SHOWN))
