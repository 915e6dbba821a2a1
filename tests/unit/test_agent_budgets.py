"""Every budget, of a run and of a conversation, ends a turn before its next model call, and names its key."""

from __future__ import annotations

import pytest

from perdure.agent.asking import Spent, check_budget
from perdure.agent.counts import BUDGETS, AgentCounts
from perdure.agent.session import Opened
from perdure.agent.settings import AgentSettings
from perdure.errors import PermanentError

RUN = Spent(input_tokens=6, output_tokens=4, cost=0.5)
BEFORE = Opened(tokens=90, cost=1.5)


@pytest.mark.parametrize(
    ("key", "enough", "used_up"),
    [
        ("budget_run_tokens", 11, 10),
        ("budget_run_cost", 0.6, 0.5),
        ("budget_run_seconds", 3.1, 3.0),
        ("budget_session_tokens", 101, 100),
        ("budget_session_cost", 2.1, 2.0),
    ],
)
def test_a_budget_that_is_used_up_is_named(key, enough, used_up):
    check_budget(AgentSettings(**{key: enough}), RUN, BEFORE, 3.0)
    with pytest.raises(PermanentError, match=f"{key} is used up: {used_up:g} of {used_up:g}"):
        check_budget(AgentSettings(**{key: used_up}), RUN, BEFORE, 3.0, counts := AgentCounts())
    spent = {
        labels[1]: value for name, labels, value in counts.readings("a") if name == "perdure_model_budgets_spent_total"
    }
    assert spent == {**dict.fromkeys(BUDGETS, 0), key: 1}, "each begins with 0, so that the first one is an increase"
