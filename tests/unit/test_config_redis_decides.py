"""Redis and the table differ: who wins; and which keys of Redis are configuration."""

from __future__ import annotations

import pytest

from config_manager.redis_mirror import ABSENT, Action, decide
from config_manager.redis_names import Batch, Name, RedisNames, read_batch

A, B, C = b"a", b"b", b"c"


@pytest.mark.parametrize(
    ("found", "stands", "seen", "sent", "action"),
    [
        (A, A, A, None, Action.NOTHING),
        (ABSENT, ABSENT, ABSENT, None, Action.NOTHING),
        (A, A, B, None, Action.AGREE),  # the same came in on both sides
        (A, A, B, A, Action.AGREE),  # what was sent has arrived
        (ABSENT, ABSENT, A, None, Action.AGREE),
        (B, A, A, None, Action.TAKE),
        (B, ABSENT, ABSENT, None, Action.TAKE),
        (B, C, A, None, Action.TAKE),  # both changed: the value of Redis wins
        (C, B, A, B, Action.TAKE),  # written after what was sent, or before it arrived
        (A, B, A, None, Action.PUSH),
        (ABSENT, B, ABSENT, None, Action.PUSH),
        (A, ABSENT, A, None, Action.PUSH),  # a row that was deleted by SQL
        (A, C, B, A, Action.PUSH),  # what was sent has arrived, and the table has gone on
        (ABSENT, C, A, ABSENT, Action.PUSH),
        (ABSENT, A, A, None, Action.RESTORE),
        (ABSENT, B, A, B, Action.RESTORE),
        (ABSENT, C, A, None, Action.PUSH),  # whoever deleted it had not seen this value
    ],
)
def test_whoever_changed_a_key_since_both_agreed_wins(found, stands, seen, sent, action) -> None:
    assert decide(found, stands, seen, sent, deleted=False, old=False) is action


def test_a_key_that_is_gone_is_dropped_only_when_somebody_deleted_the_value_that_stands() -> None:
    assert decide(ABSENT, A, A, None, deleted=True, old=False) is Action.DROP
    assert decide(ABSENT, B, A, B, deleted=True, old=False) is Action.DROP
    assert decide(ABSENT, C, A, None, deleted=True, old=False) is Action.PUSH
    assert decide(ABSENT, C, ABSENT, None, deleted=True, old=False) is Action.PUSH


def test_an_old_value_that_came_back_with_a_loss_of_data_is_no_news() -> None:
    assert decide(A, B, B, None, deleted=False, old=True) is Action.RESTORE
    assert decide(C, B, B, None, deleted=False, old=False) is Action.TAKE


def test_names_carry_the_agent_after_the_prefix() -> None:
    names = RedisNames("config:", None, tuple)
    assert names.read("config:assistant:agent_role") == Name("assistant", "agent_role")
    assert names.read("config:*:a:b") == Name("*", "a:b")
    assert names.read("config:assistant@host.1:k") == Name("assistant@host.1", "k")
    assert names.read("config:assistant") == Batch("assistant")
    assert names.read("other") is names.read("perdure:config:mark:config:") is None
    assert names.key_of(Name("*", "a:b")) == "config:*:a:b"
    for bad in (
        "config:Assistant:k",
        "config:",
        "config::k",
        "config:a.b:k",
        "config:a:",
        "config:a: k",
        "config:a:k\n",
    ):
        with pytest.raises(ValueError, match=r"write config:<agent>:<key>|printable"):
            names.read(bad)


def test_a_single_agents_names_do_not_carry_it() -> None:
    names = RedisNames("cfg/", "assistant", tuple)
    assert names.read("cfg/agent_role") == Name("assistant", "agent_role")
    assert names.read("cfg/assistant") == Batch("assistant")
    assert names.key_of(Name("assistant", "k")) == "cfg/k"
    assert names.key_of(Name("other", "k")) is names.key_of(Name("*", "k")) is None


def test_without_a_prefix_only_declared_keys_are_read() -> None:
    names = RedisNames("", "assistant", lambda: ["agent_role"])
    assert names.read("agent_role") == Name("assistant", "agent_role")
    assert names.read("somebody-elses") is None
    assert names.read("assistant") == Batch("assistant")
    assert names.fixed == ["assistant", "agent_role"]


def test_a_namespace_is_before_everything_else() -> None:
    names = RedisNames("", "assistant", lambda: ["agent_role"], space="ns:staging:")
    assert names.read("ns:staging:agent_role") == Name("assistant", "agent_role")
    assert names.read("agent_role") is names.read("ns:staging:perdure:config:table") is None
    assert names.read("ns:staging:somebody-elses") is None
    assert names.fixed == ["ns:staging:assistant", "ns:staging:agent_role"]
    assert names.own_key("mark") == "ns:staging:perdure:config:mark:assistant"


def test_a_prefix_is_no_pattern() -> None:
    assert RedisNames("a*[b]?", None, tuple).pattern == r"a\*\[b\]\?*"


def test_a_batch_is_an_object_and_null_takes_away() -> None:
    assert read_batch(b'{"a": "x", "n": 1, "l": ["y"], "gone": null}') == ({"a": "x", "n": "1", "l": '["y"]'}, ["gone"])
    for bad in (b"{", b"[]", b"{}", b'{" k": 1}', b'{"k": "a\\u0000"}', b"\xff"):
        with pytest.raises(ValueError, match="a batch is a JSON object"):
            read_batch(bad)
