"""The agent's side of configuration: snapshots, validation, secrets, and the client that keeps them current."""

from perdure.config.callbacks import on_config
from perdure.config.client import ConfigClient
from perdure.config.keys import DurableAgentSettings
from perdure.config.messages import ConfigUpdate
from perdure.config.secrets import SecretReference, resolve_secret
from perdure.config.snapshot import AgentConfig

__all__ = [
    "AgentConfig",
    "ConfigClient",
    "ConfigUpdate",
    "DurableAgentSettings",
    "SecretReference",
    "on_config",
    "resolve_secret",
]
