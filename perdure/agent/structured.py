"""Answers of a declared type: asked for as JSON, validated, and sent back to the model when they do not fit."""

from __future__ import annotations

import re
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

_FENCE = re.compile(r"^\s*```(?:json)?\s*\n(?P<inside>.*?)\n\s*```\s*$", re.DOTALL)
MOST_REPAIRS: Final = 3


class Structured:
    """The output type of one turn."""

    def __init__(self, adapter: TypeAdapter[Any]) -> None:
        self._adapter = adapter
        self._repairs = 0

    @property
    def schema(self) -> tuple[str, dict[str, Any]]:
        """The name and the JSON Schema that the model is given."""
        schema = self._adapter.json_schema()
        name = re.sub(r"[^A-Za-z0-9_-]", "_", str(schema.get("title", "output")))[:64]
        return name, schema

    def read(self, text: str) -> tuple[str | None, Any]:
        """`(None, value as JSON data)`, or what is wrong and None."""
        if fenced := _FENCE.match(text):
            text = fenced["inside"]
        try:
            value = self._adapter.validate_json(text)
        except ValidationError as error:
            told = error.errors(include_url=False, include_context=False, include_input=False)[:10]
            return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'answer'}: {one['msg']}" for one in told), None
        return None, self._adapter.dump_python(value, mode="json", by_alias=True)  # as the schema says

    @property
    def may_repair(self) -> bool:
        """Whether the model may try once more."""
        return self._repairs < MOST_REPAIRS

    def repair(self) -> None:
        """Count a try."""
        self._repairs += 1

    @staticmethod
    def complaint(problem: str) -> str:
        """What the model is told."""
        return (
            f"Your answer does not fit the required JSON Schema: {problem}. Answer again with the JSON document alone."
        )
