from __future__ import annotations

import io
import logging
import sys

import orjson
import pytest
import structlog

from perdure.observe.logging import mask_text, set_level, setup_logging
from perdure.settings import Settings


@pytest.fixture
def lines(monkeypatch):
    """Logging set up as in a process; the JSON lines that it wrote."""
    root = logging.getLogger()
    before, level, config = root.handlers, root.level, structlog.get_config()
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    setup_logging(Settings(instance_id="i-1"), service="tester")
    yield lambda: [orjson.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers = before
    root.setLevel(level)
    structlog.configure(**config)


def test_a_line_has_its_action_and_says_who_wrote_it(lines):
    with structlog.contextvars.bound_contextvars(run_id="r1", step="read"):
        structlog.get_logger("t1").info("fetched %s", "it", action="config.fetched", revision=7)
    (line,) = lines()
    assert line["event"] == "fetched it"
    assert (line["action"], line["level"], line["revision"]) == ("config.fetched", "info", 7)
    assert (line["service"], line["instance"]) == ("tester", "i-1")
    assert (line["run_id"], line["step"]) == ("r1", "read")
    assert line["timestamp"].endswith("Z")


def test_a_library_writes_through_the_same_formatter(lines):
    logging.getLogger("somelib").warning("connect to %s failed", "redis://u:hunter2@db/0")
    (line,) = lines()
    assert line["action"] == "log.somelib"
    assert line["event"] == "connect to redis://u:***@db/0 failed"
    assert line["service"] == "tester"


def test_the_level_changes_while_the_process_runs(lines):
    log = structlog.get_logger("t2")
    log.debug("no", action="a")
    set_level("debug")
    log.debug("yes", action="b")
    set_level("error")
    log.warning("no", action="c")
    assert [line["action"] for line in lines()] == ["b"]


@pytest.mark.parametrize("word", ["loud", "critical", "10", ""])
def test_an_unknown_level_is_refused(word):
    with pytest.raises(ValueError, match="use debug, info, warning or error"):
        set_level(word)


def test_secrets_are_masked_at_any_depth_and_references_stay(lines):
    structlog.get_logger("t3").info(
        "x",
        action="a",
        api_key="hunter2",
        llm_api_key="secret://env/KEY",
        max_tokens=5,
        nested={"Authorization": "hunter2", "list": [{"db_password": "hunter2"}], "data": b"nats://hunter2@h"},
    )
    (line,) = lines()
    assert "hunter2" not in str(line)
    assert line["llm_api_key"] == "secret://env/KEY"
    assert line["max_tokens"] == 5
    assert line["nested"] == {"Authorization": "***", "list": [{"db_password": "***"}], "data": "nats://***@h"}


def test_a_traceback_is_masked_too(lines):
    try:
        raise ConnectionError("postgresql://u:hunter2@db/x refused")
    except ConnectionError:
        structlog.get_logger("t4").exception("broke", action="a")
    (line,) = lines()
    assert "ConnectionError: postgresql://u:***@db/x refused" in line["exception"]
    assert "hunter2" not in str(line)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://perdure@127.0.0.1/perdure", "postgresql://perdure@127.0.0.1/perdure"),
        ("redis://:pw@h", "redis://:***@h"),
        ("nats://tokentoken@h:4222", "nats://***@h:4222"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer ***"),
        ("key sk-abcdefghijklmnop is bad", "key sk-*** is bad"),
        ("mail me@example.org at http://example.org:80/a", "mail me@example.org at http://example.org:80/a"),
    ],
)
def test_passwords_inside_a_text_are_masked(text, masked):
    assert mask_text(text) == masked
