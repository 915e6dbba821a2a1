"""Which values are bad for which agents, and what holds in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog

from config_manager.database import SQL
from config_manager.table import ConfigTable, Hold, Record
from perdure.config.schema import TextSchema
from perdure.errors import InvalidRequest
from perdure.store.postgres import Connection, Pool
from perdure.subjects import GLOBAL_LAYER

Judged = dict[tuple[str, str, str], Hold | None]  # (agent, layer, key) to its hold, or to None: good

NEVER: Final = 0  # the revision of a value that there never was

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Published:
    """A schema, and the hash by which a change of it is seen."""

    schema: TextSchema
    hash: str


class Judge:
    """The schemas of all agents, applied to rows. A key that an agent does not declare is nobody's business."""

    def __init__(self) -> None:
        self._published: dict[str, Published] = {}

    async def load(self, source: Connection | Pool) -> set[str]:
        """Read the schemas; the agents whose schema is another one now."""
        known = {agent: published.hash for agent, published in self._published.items()}
        found = {row["agent_name"]: row["schema_hash"] for row in await source.fetch(SQL["schema_hashes"])}
        changed = {agent for agent in {*known, *found} if known.get(agent) != found.get(agent)}
        if changed:
            self._published = {
                row["agent_name"]: Published(TextSchema(orjson.loads(row["schema"])), row["schema_hash"])
                for row in await source.fetch(SQL["schemas"])
            }
        return changed

    def concerned(self, layer: str) -> list[str]:
        """The agents with a schema whose configuration a layer is part of."""
        if layer == GLOBAL_LAYER:
            return list(self._published)
        agent = layer.partition("@")[0]
        return [agent] if agent in self._published else []

    def check(self, layer: str, values: Mapping[str, str]) -> list[str]:
        """Raise `InvalidRequest` naming the keys that an agent would refuse; return warnings about unknown keys."""
        refused = {
            key: f"{key} {why}" + (f" (for agent {agent})" if layer == GLOBAL_LAYER else "")
            for agent in self.concerned(layer)
            for key, text in values.items()
            if (why := self._published[agent].schema.refusal(key, text))
        }
        if refused:
            raise InvalidRequest("; ".join(refused.values()), keys=sorted(refused))
        return self.doubts(layer, values)

    def keys(self, agent: str) -> frozenset[str]:
        """The keys that the agent declares."""
        published = self._published.get(agent)
        return published.schema.keys if published else frozenset()

    def defaults(self, agent: str) -> dict[str, Any]:
        """The defaults of the agent's code, by its schema."""
        published = self._published.get(agent)
        return published.schema.defaults() if published else {}

    def doubts(self, layer: str, keys: Iterable[str]) -> list[str]:
        """What has to be said about keys that no concerned agent declares, but nearly."""
        schemas = [self._published[agent].schema for agent in self.concerned(layer)]
        unknown = [key for key in keys if schemas and not any(schema.knows(key) for schema in schemas)]
        pairs = ((key, next((meant for schema in schemas if (meant := schema.meant(key))), None)) for key in unknown)
        return [f"{key} is not a key of {layer}; did you mean {meant}?" for key, meant in pairs if meant]

    async def judge(self, source: Connection | Pool, changes: Iterable[Record]) -> Judged:
        """Judge the rows that some revisions left behind."""
        last = {(change["agent_name"], change["config_key"]): change for change in changes}
        judged: Judged = {}
        for (layer, key), change in last.items():
            text = change["new_value"] if change["new_active"] else None
            await self._judge_row(source, judged, layer, key, text, change["revision"])
        return judged

    async def judge_all(self, source: Connection | Pool, table: ConfigTable, agents: Iterable[str]) -> Judged:
        """Judge every row of some agents as `table` has it."""
        judged: Judged = {}
        wanted = set(agents)
        for layer, key, text in table.rows():
            if wanted.intersection(self.concerned(layer)):
                await self._judge_row(source, judged, layer, key, text, table.revision, only=wanted)
        return judged

    async def _judge_row(
        self,
        source: Connection | Pool,
        judged: Judged,
        layer: str,
        key: str,
        text: str | None,
        revision: int,
        *,
        only: set[str] | None = None,
    ) -> None:
        past: list[Any] | None = None
        for agent in self.concerned(layer):
            schema = self._published[agent].schema
            if (only is not None and agent not in only) or not schema.knows(key):
                continue
            why = None if text is None else schema.refusal(key, text)
            if why is None:
                judged[agent, layer, key] = None
                continue
            if past is None:
                past = await source.fetch(SQL["key_history"], layer, key, revision)
            judged[agent, layer, key] = _hold(schema, layer, key, why, past)
            log.warning("a bad value is held back", action="config.held", agent=agent, layer=layer, key=key, why=why)


def _hold(schema: TextSchema, layer: str, key: str, why: str, past: list[Any]) -> Hold:
    """The newest earlier state that is good; no row is good, too: then the layer below counts."""
    bad_since = past[0]["revision"] if past else 0
    for row in past[1:]:
        value = row["new_value"] if row["new_active"] else None
        if value is None or schema.refusal(key, value) is None:
            return Hold(layer, bad_since, row["revision"], value, why)
    return Hold(layer, bad_since, NEVER, None, why)
