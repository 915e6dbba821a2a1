"""Each body and each JSON reply of ours in the OpenAPI document has an example, and each example is one."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from perdure.edge.app import create_app
from perdure.edge.examples import EXAMPLES
from perdure.settings import Settings


@pytest.mark.parametrize("model", EXAMPLES, ids=lambda each: each.__name__)
def test_an_example_is_one(model):
    model.model_validate_json(orjson.dumps(EXAMPLES[model]))


def test_every_body_and_reply_of_ours_has_an_example():
    door: Any = SimpleNamespace(only=None, nats=None, settings=Settings())
    document = create_app(door).openapi()
    schemas = document["components"]["schemas"]
    missing = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}) | operation["responses"]["200"].get(
                "content", {}
            )
            for kind, said in content.items():
                named = re.findall(r"#/components/schemas/(\w+)", orjson.dumps(said).decode())
                if named and "example" not in orjson.dumps([said, *(schemas[name] for name in named)]).decode():
                    missing.append((method, path, kind, named))
    assert not missing
