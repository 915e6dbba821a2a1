from __future__ import annotations

import pytest

from perdure.errors import InvalidRequest
from perdure.messages import ConfigSet, RunAsk, RunBulk, RunList, RunRef, RunStart, parse


def test_a_request_is_read_with_its_defaults():
    ask = parse(RunAsk, b'{"task": {"a": [1, null]}, "unknown": 1}')
    assert (ask.task, ask.workflow, ask.run_id, ask.timeout) == ({"a": [1, None]}, "run", None, 60.0)


def test_a_task_may_be_null_but_not_missing():
    assert parse(RunStart, b'{"task": null}').task is None
    with pytest.raises(InvalidRequest, match="field 'task' is missing: add it") as caught:
        parse(RunStart, b"")
    assert caught.value.details == {"fields": ["task"]}


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b'{"task": NaN}', b'{"task": "\\ud800"}'])
def test_what_is_not_json_is_said_to_be_no_json(body):
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        parse(RunStart, body)


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"7", b"null"])
def test_a_body_that_is_no_object_is_told_what_to_send(body):
    with pytest.raises(InvalidRequest, match=r'must be a JSON object, like {"task": …}'):
        parse(RunStart, body)


@pytest.mark.parametrize("run_id", ["", "a b", "a.b", "x" * 129, "ab\n"])
def test_an_unusable_run_id_is_named(run_id):
    with pytest.raises(InvalidRequest, match="field 'run_id'"):
        parse(RunRef, b'{"run_id": "%s"}' % run_id.replace("\n", "\\n").encode())


def test_every_bad_field_is_listed_and_no_value_repeated():
    with pytest.raises(InvalidRequest) as caught:
        parse(ConfigSet, b'{"configurations": "hunter2", "expected_revision": -1}')
    assert caught.value.details["fields"] == ["configurations", "expected_revision"]
    assert "hunter2" not in str(caught.value)


def test_many_problems_are_cut_short():
    with pytest.raises(InvalidRequest, match="and 1 more"):
        parse(RunList, b'{"agent": "A B", "status": "odd", "limit": 0, "cursor": 1}')


def test_the_nul_character_is_refused_where_it_stands():
    with pytest.raises(InvalidRequest, match=r"field 'task.a.1' holds the character U\+0000"):
        parse(RunStart, b'{"task": {"a": ["fine", "\\u0000"]}}')
    with pytest.raises(InvalidRequest, match=r"field 'task\.a'"):
        parse(RunStart, b'{"task": {"a": {"\\u0000": 1}}}')


def test_an_escaped_backslash_before_u0000_is_ordinary_text():
    assert parse(RunStart, b'{"task": "\\\\u0000"}').task == "\\u0000"


def test_no_state_at_all_is_no_filter_for_all():
    with pytest.raises(InvalidRequest, match=r"field 'filter\.status'"):
        parse(RunBulk, b'{"action": "terminate", "filter": {"status": []}}')
    with pytest.raises(InvalidRequest, match="field 'status'"):
        parse(RunList, b'{"status": []}')


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_moment_that_no_store_can_hold_is_named(moment):
    with pytest.raises(InvalidRequest, match="field 'created_after': must be within the years 1 to 9999 in UTC"):
        parse(RunList, b'{"created_after": "%s"}' % moment.encode())
