from __future__ import annotations

import io
import os
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from perdure.cli import chat, console, live, runs_view
from perdure.cli.approvals import approval_of
from perdure.cli.clients import advice, parse_json
from perdure.cli.lines import Lines
from perdure.cli.main import build
from perdure.errors import Conflict, InvalidRequest, NotFound, RunFailed


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ("[1, 2]", [1, 2]),
        (" 7 ", 7),
        ("-1.5", -1.5),
        ("true", True),
        ("null", None),
        ('"quoted"', '"quoted"'),
        ("hello", "hello"),
        ("NaN", "NaN"),
        ("", ""),
        ("01", "01"),
    ],
)
def test_a_task_is_json_where_it_is_json_and_text_elsewhere(text, value, capsys):
    assert parse_json(text) == value
    assert capsys.readouterr().err == ""


def test_a_task_that_only_looks_like_json_is_text_and_said_so(capsys):
    assert parse_json('{"a": 1') == '{"a": 1'
    assert "looks like JSON and is not" in capsys.readouterr().err


def test_errors_say_what_to_do_next():
    assert "perdure runs resume r1" in advice(RunFailed("r1", "failed", None))
    assert "resume" not in advice(RunFailed("r1", "cancelled", None))
    assert "perdure runs list" in advice(NotFound("there is no run 'x'"))
    assert "--run-id" in advice(Conflict("there is a run 'x' with another task, agent or session"))


@pytest.mark.parametrize(
    ("begun", "ended", "text"),
    [
        ("2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00.012000+00:00", "12 ms"),
        ("2026-01-01T00:00:00+00:00", "2026-01-01T00:00:07.500000+00:00", "7.5 s"),
        ("2026-01-01T00:00:00+00:00", "2026-01-01T00:03:05+00:00", "3 min 5 s"),
        ("2026-01-01T00:00:00+00:00", "2026-01-02T01:30:00+00:00", "25 h 30 min"),
        (None, "2026-01-01T00:00:00+00:00", ""),
    ],
)
def test_times_are_for_people(begun, ended, text):
    assert live.took(begun, ended) == text


@pytest.mark.parametrize(
    ("age", "text"),
    [(0, "0 s ago"), (119, "119 s ago"), (150, "2 min ago"), (9000, "2 h ago"), (200_000, "2 days ago")],
)
def test_how_long_ago_is_told_in_one_unit(age, text):
    assert runs_view.ago((datetime.now(UTC) - timedelta(seconds=age)).isoformat()) == text


def event(type_: str, second: int = 0, /, seq: int = 1, **data: Any) -> Any:
    time = f"2026-01-01T00:00:0{second}+00:00"
    return {"seq": seq, "type": type_, "run_id": "r1", "agent": "a", "time": time, "data": data}


COURSE = [
    event("run.started"),
    event("step.started", name="read", path="1", attempt=1, index=1),
    event("tool.progress", step="1", fraction=0.0, text="reading", index=2),
    event("tool.progress", step="1", fraction=0.04, text="reading", index=3),
    event("tool.progress", step="1", fraction=1.0, text="reading", index=4),
    event("step.completed", 2, name="read", path="1", kind="step", attempt=1),
    event("step.retrying", name="[price]", path="2", kind="step", attempt=1, error={"message": "[red]busy"}),
    event("step.completed", 3, name="[price]", path="2", kind="step", attempt=2),
    event("step.completed", name="adopt", path="3", kind="config", attempt=1),
    event("step.failed", name="send", path="4", kind="step", attempt=1, error={"message": "no"}),
    event("tool.started", tool="lookup"),
    event("tool.completed", tool="lookup", error=True),
    event("note", said=1),
    event("approval.requested", tool="pay", call_id="c1", arguments={"sum": 5}, arguments_hash="h"),
    event("llm.delta", text="x"),
    event("run.waiting"),
    event("run.blocked", error={"message": "other code"}),
    event("run.completed", output=1),
]


def test_without_a_terminal_a_run_is_plain_lines():
    file = io.StringIO()
    with live.RunView("a", "r1", Console(file=file, width=200)) as view:
        for each in COURSE:
            view.show(each)
    assert file.getvalue().splitlines() == [
        "reading 0%",
        "reading 100%",
        "✓ read 2.0 s",
        "↻ [price]: [red]busy",
        "✓ [price] (attempt 2)",
        "✗ send: no",
        "tool lookup started",
        "tool lookup failed",
        'note {"said":1}',
        'approval needed pay {"sum":5}: `perdure runs approve r1 c1` (or --deny)',
        "blocked other code",
    ]


def test_in_a_terminal_a_run_is_lines_bars_and_a_spinner():
    file = io.StringIO()
    console = Console(file=file, width=200, force_terminal=True, color_system=None)
    with live.RunView("a", "r1", console) as view:
        for each in COURSE[:5]:
            view.show(each)
        view._progress.refresh()
        assert "━" in file.getvalue()
        assert list(view._bars) == ["1"]
        for each in COURSE[5:]:
            view.show(each)
        assert view._bars == {}
    assert "✓ read 2.0 s" in file.getvalue()


def turn(*events: Any, output: Any, terminal: bool) -> str:
    file = io.StringIO()
    view = chat.TurnView(Console(file=file, width=200, force_terminal=terminal, color_system=None))
    for each in events:
        view.show(each)
    view.end(output)
    return file.getvalue()


def test_a_pipe_gets_tables_whole_whatever_the_width_of_a_terminal(monkeypatch):
    run = {
        "run_id": "r" * 32,
        "agent": "a" * 60,
        "workflow": "run",
        "status": "needs_review",
        "created_at": None,
        "started_at": None,
        "finished_at": None,
        "session_id": None,
        "error": {"type": "Error", "message": "said " * 40},
    }
    monkeypatch.delenv("COLUMNS", raising=False)
    file = io.StringIO()
    Console(file=file, width=console.columns_of(file)).print(runs_view.listed([run]))
    assert file.getvalue().splitlines()[1].split() == ["r" * 32, "a" * 60, "needs_review", "Error:", *["said"] * 40]
    monkeypatch.setenv("COLUMNS", "80")
    assert console.columns_of(file) is None


def test_what_a_run_says_cannot_steer_the_terminal():
    said = "\x1b]0;title\x07\x1b[2Jno\x9b31m\r\n\tend"
    file = io.StringIO()
    terminal = console.Terminal(file=file, force_terminal=True, width=80, color_system=None)
    terminal.print(said, markup=False, soft_wrap=True)
    table = Table(box=None)
    table.add_column()
    table.add_row(said)
    terminal.print(table)
    with live.RunView("a", "r1", terminal) as view:
        view.show(event("tool.progress", step="1", fraction=0.5, text="\x1b]0;title\x07", index=1))
        view.show(event("step.started", name="\x1b]0;title\x07", path="1", attempt=1, index=2))
        view.show(event("step.failed", name="x", path="1", kind="step", attempt=1, error={"message": said}))
    shown = file.getvalue()
    assert "\x1b]" not in shown
    assert "\x1b[2Jno" not in shown
    assert "\x9b" not in shown
    assert "␛]0;title␇␛[2Jno" in shown
    pipe = io.StringIO()
    console.Terminal(file=pipe, force_terminal=False, width=80).print("\x1b[1mas it is", markup=False)
    assert pipe.getvalue() == "\x1b[1mas it is\n"


def test_an_answer_is_shown_as_it_comes_and_not_twice():
    pieces = [event("llm.delta", text="Hel"), event("llm.delta", text="lo [b]")]
    assert turn(*pieces, output="Hello [b]", terminal=True) == "Hello [b]\n"
    assert turn(*pieces, output="Hello [b]", terminal=False) == "Hello [b]\n"
    assert turn(*pieces, output={"said": 1}, terminal=True) == 'Hello [b]\n{\n  "said": 1\n}\n'


def test_an_answer_that_broke_off_is_begun_anew():
    events = [event("llm.delta", text="Hel"), event("llm.delta", text="", reset=True), event("llm.delta", text="Bye")]
    assert turn(*events, output="Bye", terminal=True) == "Hel\n(the answer broke off; once more)\nBye\n"


def test_tools_are_named_while_they_work():
    events = [event("llm.delta", text="I look."), event("tool.started", tool="lookup")]
    events += [event("tool.progress", fraction=0.5, text="half"), event("tool.completed", tool="lookup", error=False)]
    shown = turn(*events, event("llm.delta", text="Done."), output="Done.", terminal=True)
    assert shown == "I look.\ntool lookup started\nhalf 50%\ntool lookup completed\nDone.\n"


async def test_lines_come_from_a_pipe_and_from_a_file_to_the_last(tmp_path):
    reader, writer = os.pipe()
    lines = Lines(reader)
    os.write(writer, "grün\r\n\nla".encode())
    assert await lines.next() == "grün"
    assert await lines.next() == ""
    os.write(writer, b"st")
    os.close(writer)
    assert [await lines.next(), await lines.next(), await lines.next()] == ["last", None, None]
    os.close(reader)
    file = tmp_path / "input"
    file.write_text("one\ntwo")
    descriptor = os.open(file, os.O_RDONLY)
    lines = Lines(descriptor)
    assert [await lines.next(), await lines.next(), await lines.next()] == ["one", "two", None]
    os.close(descriptor)


def asking(*calls: str) -> Any:
    data = [{"call_id": call, "arguments_hash": f"hash of {call}"} for call in calls]
    steps = [{"kind": "event", "result": {"type": "approval.requested", "data": each}} for each in data]

    async def details() -> dict:
        return {"steps": [{"kind": "step", "result": 1}, *steps]}

    return SimpleNamespace(run_id="r1", details=details)


async def test_the_one_call_that_waits_needs_no_name():
    assert await approval_of(asking("c1"), None, None) == ("c1", "hash of c1")
    assert await approval_of(asking("c1", "c2"), "c2", None) == ("c2", "hash of c2")
    assert await approval_of(asking("c1"), "c1", "seen before") == ("c1", "seen before")
    with pytest.raises(InvalidRequest, match="name one: c1, c2"):
        await approval_of(asking("c1", "c2"), None, None)
    with pytest.raises(NotFound, match="no approval;"):
        await approval_of(asking(), None, None)
    with pytest.raises(NotFound, match="no approval of call 'c3'"):
        await approval_of(asking("c1"), "c3", None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "clerk"), "Missing argument"),
        (("runs", "list", "--status", "asleep"), "there is no status 'asleep': use one of pending, running"),
        (("runs", "list", "--limit", "0"), "--limit"),
        (("runs", "cancel", "r", "--all"), "give RUN_ID, or options that say which runs, not both"),
        (("runs", "restart", "--agent", "clerk"), "like --status failed"),
        (("runs", "approve", "r", "c", "--deny", "--edit", "{}"), "not both"),
        (("runs", "approve", "r", "c", "--edit", "[1]"), "--edit takes a JSON object"),
        (("chat", "clerk", "--session", "a b"), "--session 'a b' is not usable"),
        (("agents", "list", "--wait", "0"), "--wait"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_is_asked(arguments, said):
    result = CliRunner().invoke(build(arguments[0]), list(arguments))
    assert result.exit_code == 2
    assert said in result.output
