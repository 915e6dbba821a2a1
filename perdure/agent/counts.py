"""What one agent counts of its models and tools."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from perdure.observe.metrics import MOST_LABELS, OTHER, SLOW, Histogram, Reading

if TYPE_CHECKING:
    from perdure.llm.types import ModelReply

Which = tuple[str, str]  # provider and model
BUDGETS = (
    *("budget_run_tokens", "budget_run_cost", "budget_run_seconds"),
    *("budget_session_tokens", "budget_session_cost"),
)


class AgentCounts:
    """The numbers of one agent in one process. Models are the configuration's; past 200 of them, one is `other`."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._seconds: dict[Which, Histogram] = {}
        self._tokens: Counter[tuple[str, str, str]] = Counter()
        self._cost: dict[Which, float] = {}
        self._tools: Counter[tuple[str, str]] = Counter()
        self._budgets: Counter[str] = Counter(dict.fromkeys(BUDGETS, 0))

    def answered(self, reply: ModelReply) -> None:
        """A model gave an answer."""
        which = self._which(reply.provider or "own", reply.model or "own")
        self._requests[(*which, "ok")] += 1
        self._seconds[which].observe(reply.seconds)
        self._tokens[(*which, "input")] += reply.input_tokens
        self._tokens[(*which, "output")] += reply.output_tokens
        self._cost[which] = self._cost.get(which, 0.0) + (reply.cost or 0.0)

    def refused(self, provider: str, model: str, outcome: str) -> None:
        """A model gave none: `retryable`, `busy` or `permanent`."""
        self._requests[(*self._which(provider, model), outcome)] += 1

    def _which(self, provider: str, model: str) -> Which:
        which = (provider, model)
        if which not in self._seconds:
            if len(self._seconds) >= MOST_LABELS:
                which = (OTHER, OTHER)
            self._seconds.setdefault(which, Histogram(SLOW))
        return which

    def called(self, tool: str | None, outcome: str) -> None:
        """A tool was called, None for one that the model has made up: `ok`, `error` or `retried`."""
        self._tools[tool or OTHER, outcome] += 1

    def spent(self, budget: str) -> None:
        """A run ended because a budget was used up."""
        self._budgets[budget] += 1

    def readings(self, agent: str) -> Iterator[Reading]:
        """What was counted."""
        for (provider, model, outcome), count in self._requests.items():
            yield "perdure_model_requests_total", (agent, provider, model, outcome), count
        for which, seconds in self._seconds.items():
            yield "perdure_model_request_seconds", (agent, *which), seconds
        for (provider, model, kind), count in self._tokens.items():
            yield "perdure_model_tokens_total", (agent, provider, model, kind), count
        for which, cost in self._cost.items():
            yield "perdure_model_cost_total", (agent, *which), cost
        for (tool, outcome), count in self._tools.items():
            yield "perdure_tool_calls_total", (agent, tool, outcome), count
        for budget, count in self._budgets.items():
            yield "perdure_model_budgets_spent_total", (agent, budget), count
