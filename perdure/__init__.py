"""Perdure: AI agents as microservices, whose work outlives the process that does it.

Everything an author needs is imported from here: `from perdure import BaseAgent, DurableAgent, tool, workflow, …`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.lazy import exports

if TYPE_CHECKING:
    from perdure.agent.a2a import A2aAgent
    from perdure.agent.base import BaseAgent
    from perdure.agent.durable import DurableAgent
    from perdure.agent.hooks import Hooks, Verdict
    from perdure.agent.mcp import McpServer
    from perdure.agent.openapi import OpenApi
    from perdure.agent.team import Team
    from perdure.agent.tools import tool
    from perdure.agent.triggers import cron, every, on
    from perdure.client import Client, RunHandle
    from perdure.config.callbacks import on_config
    from perdure.config.messages import ConfigUpdate
    from perdure.config.snapshot import AgentConfig
    from perdure.engine import Context, Retry, StepContext, step, workflow
    from perdure.errors import PerdureError, PermanentError, RetryableError, RunFailed, StepFailed
    from perdure.runner.runner import AgentRunner, run_agent

# Where each name lives. They are imported when they are first asked for: a step needs no HTTP client to start.
_HOMES = {
    "A2aAgent": "perdure.agent.a2a",
    "AgentConfig": "perdure.config.snapshot",
    "AgentRunner": "perdure.runner.runner",
    "BaseAgent": "perdure.agent.base",
    "Client": "perdure.client",
    "ConfigUpdate": "perdure.config.messages",
    "Context": "perdure.engine",
    "DurableAgent": "perdure.agent.durable",
    "Hooks": "perdure.agent.hooks",
    "McpServer": "perdure.agent.mcp",
    "OpenApi": "perdure.agent.openapi",
    "PerdureError": "perdure.errors",
    "PermanentError": "perdure.errors",
    "Retry": "perdure.engine",
    "RetryableError": "perdure.errors",
    "RunFailed": "perdure.errors",
    "RunHandle": "perdure.client",
    "StepContext": "perdure.engine",
    "StepFailed": "perdure.errors",
    "Team": "perdure.agent.team",
    "Verdict": "perdure.agent.hooks",
    "on_config": "perdure.config.callbacks",
    "cron": "perdure.agent.triggers",
    "every": "perdure.agent.triggers",
    "on": "perdure.agent.triggers",
    "run_agent": "perdure.runner.runner",
    "step": "perdure.engine",
    "tool": "perdure.agent.tools",
    "workflow": "perdure.engine",
}

__all__ = [
    "A2aAgent",
    "AgentConfig",
    "AgentRunner",
    "BaseAgent",
    "Client",
    "ConfigUpdate",
    "Context",
    "DurableAgent",
    "Hooks",
    "McpServer",
    "OpenApi",
    "PerdureError",
    "PermanentError",
    "Retry",
    "RetryableError",
    "RunFailed",
    "RunHandle",
    "StepContext",
    "StepFailed",
    "Team",
    "Verdict",
    "cron",
    "every",
    "on",
    "on_config",
    "run_agent",
    "step",
    "tool",
    "workflow",
]

__getattr__ = exports(__name__, _HOMES, globals())
