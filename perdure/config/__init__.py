"""The agent's side of configuration: snapshots, validation, secrets, and the client that keeps them current."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.lazy import exports

if TYPE_CHECKING:
    from perdure.config.callbacks import on_config
    from perdure.config.client import ConfigClient
    from perdure.config.keys import DurableAgentSettings
    from perdure.config.messages import ConfigUpdate
    from perdure.config.secrets import SecretReference, resolve_secret
    from perdure.config.snapshot import AgentConfig

_HOMES = {
    "AgentConfig": "perdure.config.snapshot",
    "ConfigClient": "perdure.config.client",
    "ConfigUpdate": "perdure.config.messages",
    "DurableAgentSettings": "perdure.config.keys",
    "SecretReference": "perdure.config.secrets",
    "on_config": "perdure.config.callbacks",
    "resolve_secret": "perdure.config.secrets",
}

__all__ = [
    "AgentConfig",
    "ConfigClient",
    "ConfigUpdate",
    "DurableAgentSettings",
    "SecretReference",
    "on_config",
    "resolve_secret",
]

__getattr__ = exports(__name__, _HOMES, globals())
