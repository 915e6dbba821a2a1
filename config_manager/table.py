"""The configuration table in memory: rows by layer, brought forward revision by revision from history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, TypeAlias

import asyncpg
import orjson

from perdure.subjects import GLOBAL_LAYER

Record: TypeAlias = "asyncpg.Record | Mapping[str, Any]"


@dataclass(frozen=True, slots=True)
class Notice:
    """That a revision changed `keys` of one layer (an agent, `*`, or `agent@instance`)."""

    revision: int
    layer: str
    keys: tuple[str, ...]
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Hold:
    """That a row of `layer` is bad for an agent since `revision`: `value`, of `value_revision`, counts in its place.

    `value` is None where there was no row before: then the layer below counts.
    """

    layer: str
    revision: int
    value_revision: int
    value: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one agent gets: its layers merged. `revision` is the newest that touched any of them.

    `origins` says which layer each value is from, `held` which keys are held, and why.
    """

    agent: str
    revision: int
    values: dict[str, str]
    origins: dict[str, str]
    held: dict[str, Hold]

    def reply(self) -> dict[str, Any]:
        """The body of a `config.get` reply."""
        body: dict[str, Any] = {
            "status": "success",
            "agent_name": self.agent,
            "configurations": self.values,
            "revision": self.revision,
        }
        if self.held:
            body["held"] = {
                key: {
                    "revision": hold.revision,
                    "value_revision": hold.value_revision,
                    "layer": hold.layer,
                    "why": hold.why,
                }
                for key, hold in self.held.items()
            }
        return body


class ConfigTable:
    """All rows and the newest revision they stand at. Rows with `is_active = false` are hidden here already."""

    def __init__(self) -> None:
        self.revision = 0
        self._layers: dict[str, dict[str, str]] = {}
        self._heads: dict[str, int] = {}
        self._encoded: dict[str, dict[str, bytes]] = {}
        self._asked: set[str] = set()
        self._holds: dict[str, dict[tuple[str, str], Hold]] = {}

    def load(self, revision: int, rows: Iterable[Record], heads: Iterable[Record]) -> None:
        """Begin anew from one consistent read of the tables."""
        self.revision = revision
        self._layers = {}
        for row in rows:
            if row["is_active"]:
                self._layers.setdefault(row["agent_name"], {})[row["config_key"]] = row["config_value"]
        self._heads = {row["agent_name"]: row["revision"] for row in heads}
        self._encoded.clear()

    def hold(self, judged: Mapping[tuple[str, str, str], Hold | None]) -> None:
        """Take over what was found about (agent, layer, key): None ends a hold."""
        for (agent, layer, key), hold in judged.items():
            holds = self._holds.setdefault(agent, {})
            if hold is not None:
                holds[layer, key] = hold
            else:
                holds.pop((layer, key), None)
            self._forget(agent)

    def drop_holds(self, agents: Iterable[str]) -> None:
        """Begin anew with the holds of some agents."""
        for agent in agents:
            self._holds.pop(agent, None)
            self._forget(agent)

    def apply(self, changes: Iterable[Record]) -> list[Notice]:
        """Take the next rows of history, in order. Those that are in already are passed over."""
        notices = []
        news = (change for change in changes if change["revision"] > self.revision)
        for (revision, layer), group in groupby(news, key=_where):
            rows = list(group)
            values = self._layers.setdefault(layer, {})
            for row in rows:
                if row["new_value"] is not None and row["new_active"]:
                    values[row["config_key"]] = row["new_value"]
                else:
                    values.pop(row["config_key"], None)
                for holds in self._concerned_holds(layer):
                    holds.pop((layer, row["config_key"]), None)
            self._heads[layer] = revision
            self._forget(layer)
            keys = tuple(row["config_key"] for row in rows)
            notices.append(Notice(revision, layer, keys, max(row["changed_at"] for row in rows)))
        if notices:
            self.revision = notices[-1].revision
        return notices

    def snapshot(self, agent: str, instance: str | None = None) -> Snapshot:
        """The merged layers: `*` below the agent, the agent below `agent@instance`."""
        values: dict[str, str] = {}
        origins: dict[str, str] = {}
        held: dict[str, Hold] = {}
        revision = 0
        holds = self._holds.get(agent, {})
        for layer in layers_of(agent, instance):
            for key, value in self._layers.get(layer, {}).items():
                hold = holds.get((layer, key))
                good = value if hold is None else hold.value
                if good is not None:
                    values[key], origins[key] = good, layer
                if hold is not None:
                    held[key] = hold
                else:  # a good value of a higher layer: what is held below does not matter
                    held.pop(key, None)
            revision = max(revision, self._heads.get(layer, 0))
        return Snapshot(agent, revision, values, origins, held)

    def encoded(self, agent: str, instance: str | None = None) -> bytes:
        """`snapshot(…).reply()` as JSON, kept until one of its layers changes."""
        self._asked.add(agent)
        kept = self._encoded.setdefault(agent, {})
        if instance is not None and f"{agent}@{instance}" not in self._layers:
            instance = None
        key = instance or ""
        if key not in kept:
            kept[key] = orjson.dumps(self.snapshot(agent, instance).reply())
        return kept[key]

    def layer(self, name: str) -> dict[str, str]:
        """The visible rows of one layer alone."""
        return dict(self._layers.get(name, {}))

    def heads(self) -> dict[str, int]:
        """Each layer that has visible rows, and the newest revision that touched it; sorted by name."""
        return {name: self._heads.get(name, 0) for name, rows in sorted(self._layers.items()) if rows}

    def all_holds(self) -> dict[tuple[str, str, str], Hold]:
        """Every hold, by agent, layer and key."""
        return {(agent, *where): hold for agent, holds in self._holds.items() for where, hold in holds.items()}

    def all_heads(self) -> dict[str, int]:
        """The newest revision of each layer that ever was."""
        return dict(self._heads)

    def rows(self) -> list[tuple[str, str, str]]:
        """Every visible row: layer, key, text."""
        return [(layer, key, text) for layer, rows in self._layers.items() for key, text in rows.items()]

    def agent_count(self) -> int:
        """How many agents were asked for, or have rows."""
        return len(self._asked.union(name for name in self._heads if "@" not in name))

    def has_instances(self, agent: str) -> bool:
        """Whether some instance of the agent has rows of its own."""
        return any(rows and layer.startswith(f"{agent}@") for layer, rows in self._layers.items())

    def held(self) -> dict[str, dict[str, Hold]]:
        """The agents with held keys."""
        found = {agent: self.snapshot(agent).held for agent, holds in self._holds.items() if holds}
        return {agent: held for agent, held in sorted(found.items()) if held}

    def _concerned_holds(self, layer: str) -> list[dict[tuple[str, str], Hold]]:
        if layer == GLOBAL_LAYER:
            return list(self._holds.values())
        return [self._holds[agent]] if (agent := layer.partition("@")[0]) in self._holds else []

    def _forget(self, layer: str) -> None:
        if layer == GLOBAL_LAYER:
            self._encoded.clear()
        else:
            self._encoded.pop(layer.partition("@")[0], None)


def layers_of(agent: str, instance: str | None = None) -> list[str]:
    """The layers of an agent, the lowest first."""
    if agent == GLOBAL_LAYER:
        return [GLOBAL_LAYER]
    own = [GLOBAL_LAYER, agent]
    return [*own, f"{agent}@{instance}"] if instance else own


def _where(change: Record) -> tuple[int, str]:
    return change["revision"], change["agent_name"]
