"""What is said about configuration on NATS."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from perdure.subjects import GLOBAL_LAYER

LONGEST_SPREAD: Final = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class ConfigUpdate:
    """One change, as `_handle_config_update` gets it.

    `data` is the message as it came, `agent_name` whose rows changed (`*`: those of all), `updated_keys` the keys whose
    values are different now for this agent, `timestamp` Unix seconds, `revision` the one that is live now. `snapshot`
    is the whole configuration when it is small, `spread` the seconds over which many agents should ask for it.
    """

    data: bytes
    agent_name: str
    updated_keys: tuple[str, ...]
    timestamp: float
    revision: int
    instance_id: str | None = None
    snapshot: Mapping[str, Any] | None = None
    spread: float = 0.0

    @classmethod
    def parse(cls, data: bytes) -> ConfigUpdate:
        """Read a `config.update` message. Raises `ValueError` when it is none."""
        body = orjson.loads(data)
        try:
            return cls(
                data=data,
                agent_name=str(body["agent_name"]),
                updated_keys=tuple(str(key) for key in body["updated_keys"]),
                timestamp=float(body["timestamp"]),
                revision=int(body["revision"]),
                instance_id=body.get("instance_id"),
                snapshot=body.get("snapshot"),
                spread=min(max(float(body.get("spread", 0.0)), 0.0), LONGEST_SPREAD),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a config.update message: {error!r}") from None

    @classmethod
    def found(cls, agent_name: str, updated_keys: tuple[str, ...], revision: int) -> ConfigUpdate:
        """A change that nobody told of: it was found by reading."""
        now = time.time()
        body: dict[str, Any] = {
            "agent_name": agent_name,
            "updated_keys": updated_keys,
            "timestamp": now,
            "revision": revision,
        }
        return cls(orjson.dumps(body), agent_name, updated_keys, now, revision)

    def now_live(self, updated_keys: tuple[str, ...], revision: int) -> ConfigUpdate:
        """The same message, with what came of it and of those before it."""
        return replace(self, updated_keys=updated_keys, revision=revision)

    def concerns(self, agent: str, instance_id: str) -> bool:
        """Whether this process of `agent` has to look."""
        if self.agent_name not in (agent, GLOBAL_LAYER):
            return False
        return self.instance_id in (None, instance_id)
