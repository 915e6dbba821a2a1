"""What stands for a step's arguments in the journal is the same in every process, or replay stops the run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perdure.engine.codec import identity
from perdure.engine.definition import step_function

PROGRAM = """
from perdure.engine.codec import identity
class Thing: pass
odd = {(1, 2): {"b", "a", "c"}, "big": 2**80, "thing": Thing(), "text": "\\ud800"}
print(identity("s", (odd, {"x", "y", "z"}), {"k": odd, "f": print}))
"""


def test_arguments_of_any_kind_have_the_same_identity_in_every_process():
    def once(seed: str) -> str:
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        return done.stdout

    assert once("1") == once("2")


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (((1,), {}), ((2,), {})),
        ((({"a": 1},), {}), (({"a": 2},), {})),
        (((), {"k": 2**70}), ((), {"k": 2**70 + 1})),
        (((Point(1),), {}), ((Point(2),), {})),
        ((("a", "b"), {}), (("ab",), {})),
    ],
)
def test_other_arguments_are_another_identity(one, two):
    assert identity("s", *one) != identity("s", *two)
    assert identity("s", *one) == identity("s", *one)
    assert identity("s", *one) != identity("t", *one)


def test_functions_made_by_one_factory_keep_their_own_return_types():
    def make(kind: Any) -> Any:
        async def step():
            return None

        step.__annotations__["return"] = kind
        return step

    numbers, texts = make(dict[str, int]), make(dict[str, str])
    assert step_function(numbers).result.decode('{"a":"1"}', what="it") == {"a": 1}
    assert step_function(texts).result.decode('{"a":"1"}', what="it") == {"a": "1"}
    assert step_function(numbers).result.decode('{"a":"1"}', what="it") == {"a": 1}
