"""What an agent reads from its snapshot."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
from pydantic import BaseModel, Field
from structlog.testing import capture_logs

from perdure.config.snapshot import AgentConfig


class Own(BaseModel):
    count: int = 3
    ratio: float | None = None
    names: list[str] = []
    mapping: dict[str, int] = {}
    mode: Literal["fast", "safe"] = "safe"
    title: str = Field("untitled", min_length=2)
    maybe: int | None = 5


def config(values, model=Own, **more) -> AgentConfig:
    return AgentConfig.from_row(values, agent_name="a", settings_model=model, **more)


def test_a_declared_key_has_the_type_that_the_settings_declare() -> None:
    made = config(
        {"count": "5", "ratio": "0.5", "names": '["a"]', "mapping": '{"a": 1}', "maybe": "null", "title": "12"}
    )
    values = {key: made.get_setting(key) for key in ("count", "ratio", "names", "mapping", "maybe", "title")}
    assert values == {"count": 5, "ratio": 0.5, "names": ["a"], "mapping": {"a": 1}, "maybe": None, "title": "12"}


def test_a_declared_key_without_a_row_is_the_default_given_or_else_the_declared_one() -> None:
    made = config({})
    assert made.get_setting("count") == 3
    assert made.get_setting("count", 9) == 9


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("7", 0, 7),
        ("0.5", 0.0, 0.5),
        ("yes", False, True),
        ("0", True, False),
        ("text", "", "text"),
        ("7", None, "7"),
        ('["a", 1]', [], ["a", 1]),
        ("a, b", [], ["a", "b"]),
        ('{"a": 1}', {}, {"a": 1}),
        (" 7 ", 0, 7),
    ],
)
def test_an_undeclared_key_has_the_type_of_the_default(text, default, value) -> None:
    made = config({"k": text})
    for _ in range(2):  # converted, and from what is kept
        assert made.get_setting("k", default) == value
        assert type(made.get_setting("k", default)) is type(value)


@pytest.mark.parametrize(("text", "default"), [("many", 1), ("x", 0.5), ("maybe", True), ("[", {}), ("1.5", 1)])
def test_what_does_not_convert_is_the_default_and_one_warning(text, default) -> None:
    made = config({"k": text})
    with capture_logs() as logs:
        assert made.get_setting("k", default) == default
        assert made.get_setting("k", default) == default
    assert [log["action"] for log in logs] == ["config.setting_unusable"]


def test_each_default_counts_for_its_own_call() -> None:
    made = config({"k": "bad"})
    assert (made.get_setting("k", 1), made.get_setting("k", 2), made.get_setting("none", 3)) == (1, 2, 3)
    assert (made.get_setting("none", 4), made.at(9).get_setting("none", 5)) == (4, 5)


@pytest.mark.parametrize(
    ("key", "bad", "says"),
    [
        ("count", "many", "integer"),
        ("count", "", "integer"),
        ("ratio", "1,5", "number"),
        ("names", '["a", 1]', "at 1: Input should be a valid string"),
        ("names", "[", "list"),
        ("mapping", '{"a": "x"}', "at a: Input should be a valid integer"),
        ("mode", "slow", "'fast' or 'safe'"),
        ("title", "x", "at least 2 characters"),
        ("title", "5", "at least 2 characters"),
    ],
)
def test_a_bad_value_is_held_at_the_last_good_with_the_reason(key, bad, says) -> None:
    good = {"count": "1", "ratio": "1", "names": "[]", "mapping": "{}", "mode": "fast", "title": "good"}
    made = config({**good, key: bad, "other": "new"}, last_good=good)
    assert says in made.held[key]
    assert made.values == {**good, "other": "new"}
    nothing_known = config({key: bad})
    assert nothing_known.values == {}
    assert nothing_known.get_setting(key) == getattr(Own(), key)


def test_a_last_good_value_that_is_bad_by_now_is_dropped() -> None:
    made = config({"count": "many"}, last_good={"count": "few"})
    assert (made.get_setting("count"), "count" in made.held) == (3, True)


def test_a_required_key_whose_row_is_deleted_is_held() -> None:
    class Needs(BaseModel):
        region: str

    made = config({}, Needs, last_good={"region": "eu"})
    assert (made.get_setting("region"), list(made.held)) == ("eu", ["region"])
    with pytest.raises(ValueError, match="region"):
        config({}, Needs)


def test_the_hash_depends_on_the_values_alone() -> None:
    one = config({"a": "1", "b": "2"}, revision=1)
    assert one.hash == config({"b": "2", "a": "1"}, None, revision=2).hash
    assert one.hash != config({"a": "1", "b": "3"}).hash
    assert config({}).hash == "44136fa355b3678a1146ad16f7e8649e"


def test_a_snapshot_cannot_be_changed() -> None:
    made = config({"a": "1"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.revision = 5
    with pytest.raises(TypeError):
        made.values["a"] = "2"


def test_typed_gives_declared_keys_by_type_and_the_others_as_text() -> None:
    made = config({"count": "5", "extra": "5"})
    assert made.typed() == {
        "count": 5,
        "names": [],
        "mapping": {},
        "mode": "safe",
        "title": "untitled",
        "maybe": 5,
        "extra": "5",
    }
