"""Named SQL blocks: every query stands in a .sql file under `store/sql`, and Python never builds SQL."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.resources import files

from perdure.errors import PerdureError

_NAME = re.compile(r"^-- name: (?P<name>[a-z][a-z0-9_]*)\s*$", re.MULTILINE)


class Queries(Mapping[str, str]):
    """The blocks of one .sql file by name. An unknown name is a `KeyError` that lists the known ones."""

    def __init__(self, file: str, text: str) -> None:
        parts = _NAME.split(text)
        names, blocks = parts[1::2], parts[2::2]
        if len(set(names)) != len(names):
            raise PerdureError(f"{file} names a query twice: {sorted(names)}")
        self._file = file
        self._blocks = {name: block.strip() for name, block in zip(names, blocks, strict=True)}

    def __getitem__(self, name: str) -> str:
        try:
            return self._blocks[name]
        except KeyError:
            raise KeyError(f"{self._file} has no query {name!r}; it has {sorted(self._blocks)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)


@lru_cache
def load_queries(file: str) -> Queries:
    """Read `store/sql/<file>`; a block begins with a line `-- name: the_name` and ends where the next begins."""
    return Queries(file, files("perdure.store").joinpath("sql", file).read_text(encoding="utf-8"))
