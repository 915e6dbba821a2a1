"""`config.get`, `config.set`, `config.history` and `config.rollback` as a plain NATS client sees them."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from tests.config_support import PUT, ask, manager
from tests.support import eventually


@pytest.fixture
async def running(settings):
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(manager(settings))


async def test_get_answers_with_and_without_a_body_and_for_an_agent_without_rows(running, nc, pool) -> None:
    await pool.execute(PUT, "*", "k", "global")
    await pool.execute(PUT, "assistant", "k", "own")
    await eventually(lambda: running.table.revision == 2)
    expected = {"status": "success", "agent_name": "assistant", "configurations": {"k": "own"}, "revision": 2}
    assert await ask(nc, "config.get.assistant") == expected
    assert await ask(nc, "config.get.assistant", {"agent_name": "Assistant"}) == expected
    assert await ask(nc, "config.get", {"agent_name": "assistant"}) == expected
    nobody = await ask(nc, "config.get.nobody")
    assert (nobody["status"], nobody["configurations"], nobody["revision"]) == ("success", {"k": "global"}, 1)


async def test_set_stores_text_as_it_is_and_everything_else_as_json(running, nc, pool) -> None:
    values = {"text": " as it is ", "n": 3, "f": 0.5, "yes": True, "list": ["a", 1], "object": {"a": None}}
    reply = await ask(nc, "config.set.assistant", {"configurations": values, "changed_by": "eva"})
    stored = {"text": " as it is ", "n": "3", "f": "0.5", "yes": "true", "list": '["a",1]', "object": '{"a":null}'}
    assert reply == {"status": "success", "agent_name": "assistant", "configurations": stored, "revision": 1}
    assert await ask(nc, "config.get.assistant") == reply
    gone = await ask(nc, "config.set.assistant", {"configurations": {"n": None, "never": None, "f": 1}})
    assert gone["revision"] == 2
    assert gone["configurations"] == {**{k: v for k, v in stored.items() if k != "n"}, "f": "1"}
    assert await pool.fetchval("SELECT count(DISTINCT revision) FROM config_history") == 2
    assert await pool.fetchval("SELECT changed_by FROM config_history WHERE revision = 1 LIMIT 1") == "eva"


async def test_a_set_that_changes_nothing_makes_no_revision(running, nc) -> None:
    first = await ask(nc, "config.set.assistant", {"configurations": {"k": "1"}})
    assert await ask(nc, "config.set.assistant", {"configurations": {"k": "1", "never": None}}) == first


@pytest.mark.parametrize("subject", ["config.set.*", "config.set._global", "config.set"])
async def test_the_global_layer_is_set_by_each_of_its_names(running, nc, subject) -> None:
    reply = await ask(nc, subject, {"agent_name": "*", "configurations": {"k": "1"}})
    assert (reply["status"], reply["agent_name"], reply["revision"]) == ("success", "*", 1)
    assert (await ask(nc, "config.get.anyone"))["configurations"] == {"k": "1"}


async def test_an_instance_has_a_layer_above_its_agent(running, nc) -> None:
    await ask(nc, "config.set.assistant", {"configurations": {"k": "agent", "j": "agent"}})
    await ask(nc, "config.set.assistant", {"instance_id": "host.1", "configurations": {"k": "instance"}})
    assert (await ask(nc, "config.get.assistant"))["configurations"] == {"k": "agent", "j": "agent"}
    for subject, body in (("config.get.assistant", {"instance_id": "host.1"}), ("config.get.assistant@host.1", None)):
        assert (await ask(nc, subject, body))["configurations"] == {"k": "instance", "j": "agent"}


async def test_an_expected_revision_that_is_past_is_a_conflict_and_stores_nothing(running, nc) -> None:
    first = await ask(nc, "config.set.assistant", {"configurations": {"k": "1"}, "expected_revision": 0})
    await ask(nc, "config.set.other", {"configurations": {"k": "1"}})  # somebody else's change is none of ours
    second = await ask(
        nc, "config.set.assistant", {"configurations": {"k": "2"}, "expected_revision": first["revision"]}
    )
    assert second["status"] == "success"
    late = await ask(nc, "config.set.assistant", {"configurations": {"k": "3"}, "expected_revision": 1})
    assert late["error"]["code"] == "conflict"
    assert late["error"]["revision"] == 3
    await ask(nc, "config.set._global", {"configurations": {"j": "1"}})
    late = await ask(nc, "config.set.assistant", {"configurations": {"k": "3"}, "expected_revision": 3})
    assert late["error"]["code"] == "conflict"
    assert (await ask(nc, "config.get.assistant"))["configurations"] == {"k": "2", "j": "1"}


async def test_history_pages_from_the_newest_and_says_who_and_what(running, nc, pool) -> None:
    for number in range(5):
        await ask(nc, "config.set.assistant", {"configurations": {"k": str(number), "j": str(number)}})
    await pool.execute("DELETE FROM agent_configurations WHERE config_key = 'j'")
    seen, cursor = [], None
    while True:
        page = await ask(nc, "config.history.assistant", {"limit": 3, "cursor": cursor})
        seen += [(e["revision"], e["config_key"], e["old_value"], e["new_value"]) for e in page["history"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen[:3] == [(6, "j", "4", None), (5, "k", "3", "4"), (5, "j", "3", "4")]
    assert len(seen) == 11
    only = await ask(nc, "config.history.assistant", {"key": "k", "limit": 1})
    assert only["history"][0]["changed_by"] == "config.set"
    assert only["history"][0]["changed_at"].startswith("20")


async def test_history_of_large_values_fits_into_a_message(running, nc, pool) -> None:
    for number in range(3):
        await pool.execute(PUT, "assistant", "large", str(number) * 1_000_000)
    page = await ask(nc, "config.history.assistant")
    assert [entry["cut"] for entry in page["history"]] == [["old_value", "new_value"]] * 2 + [["new_value"]]


async def test_rollback_is_a_new_revision_with_the_rows_as_they_were(running, nc, pool) -> None:
    await ask(nc, "config.set.assistant", {"configurations": {"a": "1", "b": "1", "hidden": "1"}})
    await pool.execute("UPDATE agent_configurations SET is_active = FALSE WHERE config_key = 'hidden'")
    await ask(nc, "config.set.assistant", {"configurations": {"a": "2", "b": None, "c": "2", "hidden": None}})
    back = await ask(nc, "config.rollback.assistant", {"revision": 2, "changed_by": "eva"})
    assert (back["revision"], back["configurations"]) == (4, {"a": "1", "b": "1"})
    assert await pool.fetchval("SELECT is_active FROM agent_configurations WHERE config_key = 'hidden'") is False
    assert (await ask(nc, "config.rollback.assistant", {"revision": 4}))["revision"] == 4  # nothing to do
    empty = await ask(nc, "config.rollback.assistant", {"revision": 0})
    assert (empty["revision"], empty["configurations"]) == (5, {})
    unknown = await ask(nc, "config.rollback.assistant", {"revision": 99})
    assert unknown["error"]["code"] == "not_found"
    missing = await ask(nc, "config.rollback.assistant")
    assert missing["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("subject", "body", "says"),
    [
        ("config.get.bad!name", None, "agent name"),
        ("config.get.a.b", None, "agent name"),
        ("config.get", None, "agent_name is missing"),
        ("config.get.assistant", {"agent_name": 5}, "agent_name must be text"),
        ("config.get.assistant", {"agent_name": "other"}, "name the same agent"),
        ("config.set.assistant", {"agent_name": "*", "configurations": {"k": "1"}}, "name the same agent"),
        ("config.get.assistant", b"{", "not valid JSON"),
        ("config.get.assistant", b"[]", "JSON object"),
        ("config.get.assistant", b'{"a":"\xff"}', "not valid JSON"),
        ("config.get.assistant", {"min_revision": "1"}, "min_revision"),
        ("config.get.assistant", {"part": 3}, "part 3"),
        ("config.get.assistant", {"instance_id": "a b"}, "instance_id"),
        ("config.set.assistant", None, "configurations"),
        ("config.set.assistant", {"configurations": []}, "configurations"),
        ("config.set.assistant", {"configurations": {}}, "configurations"),
        ("config.set.assistant", {"configuration": {"k": "1"}}, "unknown field 'configuration'"),
        ("config.set.assistant", {"configurations": {"": "1"}}, "printable"),
        ("config.set.assistant", {"configurations": {" k": "1"}}, "printable"),
        ("config.set.assistant", {"configurations": {"k\n": "1"}}, "printable"),
        ("config.set.assistant", {"configurations": {"k" * 256: "1"}}, "printable"),
        ("config.set.assistant", {"configurations": {"k": "a\x00b"}}, "NUL"),
        ("config.set.assistant", {"configurations": {f"k{n}": n for n in range(1001)}}, "at most 1000"),
        ("config.set.assistant", {"configurations": {"k": "1"}, "expected_revision": -1}, "expected_revision"),
        ("config.set.assistant", {"configurations": {"k": "1"}, "expected_revision": True}, "expected_revision"),
        ("config.set.assistant", {"configurations": {"k": "1"}, "changed_by": 7}, "changed_by"),
        ("config.set._global", {"configurations": {"k": "1"}, "instance_id": "i"}, "no instances"),
        ("config.set.assistant", {"configurations": {"llm_api_key": "sk-plain"}}, "secret://env/NAME"),
        ("config.history.assistant", {"limit": 0}, "limit"),
        ("config.history.assistant", {"cursor": "x"}, "cursor"),
        ("config.rollback.assistant", {"revision": "1"}, "revision"),
        ("config.rollback.assistant", {"revision": 2**63}, "revision"),
    ],
)
async def test_bad_input_gets_an_error_that_names_the_field(running, nc, pool, subject, body, says) -> None:
    reply = await ask(nc, subject, body)
    assert reply["status"] == "error"
    assert reply["error"]["code"] == "invalid_request"
    assert says in reply["error"]["message"]
    assert "sk-plain" not in reply["error"]["message"]
    assert await pool.fetchval("SELECT count(*) FROM config_history") == 0


async def test_a_key_with_characters_that_unicode_calls_control_is_refused_alike(running, nc) -> None:
    for key in ("k\x85x", "\u2003k"):
        reply = await ask(nc, "config.set.assistant", {"configurations": {key: "1"}})
        assert reply["error"]["code"] == "invalid_request", key
    for key in ("grüße", "a b", "emoji 🙂", "a.b/c:d"):
        reply = await ask(nc, "config.set.assistant", {"configurations": {key: "🙂"}})
        assert reply["status"] == "success", key


async def test_a_write_is_seen_by_the_next_read_on_any_manager(settings, running, nc) -> None:
    async with manager(settings, instance_id="second"):
        for number in range(40):
            reply = await ask(nc, "config.set.assistant", {"configurations": {"k": number}})
            body = {"min_revision": reply["revision"]}
            assert (await ask(nc, "config.get.assistant", body))["configurations"] == {"k": str(number)}


async def test_a_revision_that_the_database_never_had_is_said(running, nc) -> None:
    assert (await ask(nc, "config.get.assistant", {"min_revision": 1000}))["rewound"] is True
