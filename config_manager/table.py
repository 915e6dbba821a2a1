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
class Snapshot:
    """What one agent gets: its layers merged. `revision` is the newest that touched any of them."""

    agent: str
    revision: int
    values: dict[str, str]
    origins: dict[str, str]

    def reply(self) -> dict[str, Any]:
        """The body of a `config.get` reply."""
        return {
            "status": "success",
            "agent_name": self.agent,
            "configurations": self.values,
            "revision": self.revision,
        }


class ConfigTable:
    """All rows and the newest revision they stand at. Rows with `is_active = false` are hidden here already."""

    def __init__(self) -> None:
        self.revision = 0
        self._layers: dict[str, dict[str, str]] = {}
        self._heads: dict[str, int] = {}
        self._encoded: dict[str, dict[str, bytes]] = {}

    def load(self, revision: int, rows: Iterable[Record], heads: Iterable[Record]) -> None:
        """Begin anew from one consistent read of the tables."""
        self.revision = revision
        self._layers = {}
        for row in rows:
            if row["is_active"]:
                self._layers.setdefault(row["agent_name"], {})[row["config_key"]] = row["config_value"]
        self._heads = {row["agent_name"]: row["revision"] for row in heads}
        self._encoded.clear()

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
        revision = 0
        for layer in layers_of(agent, instance):
            own = self._layers.get(layer, {})
            values |= own
            origins |= dict.fromkeys(own, layer)
            revision = max(revision, self._heads.get(layer, 0))
        return Snapshot(agent, revision, values, origins)

    def encoded(self, agent: str, instance: str | None = None) -> bytes:
        """`snapshot(…).reply()` as JSON, kept until one of its layers changes."""
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
