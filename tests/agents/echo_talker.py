"""An agent for chaos tests: it answers with what it was told, and with how many messages it was shown."""

from __future__ import annotations

from perdure import DurableAgent, run_agent
from perdure.llm.types import ModelReply, ModelRequest


class Echo:
    """The whole answer is a function of the conversation."""

    async def complete(self, request: ModelRequest, *, on_delta: object = None) -> ModelReply:
        told = [message["content"] for message in request.messages if message["role"] == "user"]
        return ModelReply(f"{len(request.messages) - 1} {told[-1]}", "answer")


if __name__ == "__main__":
    run_agent(DurableAgent("talker", model=Echo(), stream=False))
