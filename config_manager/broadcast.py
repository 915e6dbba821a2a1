"""The `config.update` message: what changed, and the whole configuration with it when that is small."""

from __future__ import annotations

from typing import Any, Final

import orjson

from config_manager.table import ConfigTable, Notice
from perdure.subjects import GLOBAL_LAYER

MOST_KEYS: Final = 500  # named in one broadcast
LARGEST_CARRIED: Final = 8 * 1024  # bytes of a snapshot that travels along, so that nobody has to ask for it
FEW: Final = 50  # agents that may ask at the same moment
SECONDS_EACH: Final = 0.0005  # that each further agent adds to the time over which they should spread


def broadcast_of(notice: Notice, table: ConfigTable, *, carry: bool) -> bytes:
    """The message for one notice; `carry`: with the agent's snapshot, as far as it is small and the same for all."""
    agent, _, instance = notice.layer.partition("@")
    message: dict[str, Any] = {
        "agent_name": agent,
        "updated_keys": notice.keys[:MOST_KEYS],
        "timestamp": notice.changed_at.timestamp(),
        "revision": notice.revision,
    }
    if instance:
        message["instance_id"] = instance
    if len(notice.keys) > MOST_KEYS:
        message["more_keys"] = len(notice.keys) - MOST_KEYS
    if agent == GLOBAL_LAYER:
        spread = (table.agent_count() - FEW) * SECONDS_EACH
        if spread > 0:
            message["spread"] = min(spread, 1.0)
    elif carry and not table.has_instances(agent):
        encoded = table.encoded(agent)
        if len(encoded) <= LARGEST_CARRIED:
            message["snapshot"] = orjson.Fragment(encoded)
    return orjson.dumps(message)
