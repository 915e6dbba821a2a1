"""`perdure config …`: read, change and follow the configuration of agents, through the ConfigManager."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from perdure.cli import config_files, config_follow
from perdure.cli import config_view as view
from perdure.cli import config_yaml as files
from perdure.cli.config_calls import Caller, calling, own_rows
from perdure.cli.config_options import Agent, By, Expected, Instance, Output, user
from perdure.cli.console import err, fail, out, print_json, run

app = typer.Typer(
    help="""Read, change and follow the configuration of agents.

    A change reaches running agents within milliseconds; none is restarted. The same is done with plain SQL on the
    table agent_configurations.

    [bold]perdure config set assistant agent_role='Pirate' max_iterations=7[/]

    [bold]perdure config set '*' log_level=debug[/]  (all agents)

    [bold]perdure config watch[/]  (in another terminal)
    """,
    no_args_is_help=True,
    rich_markup_mode="rich",
)


def register(main: typer.Typer) -> None:
    """Add the commands."""
    app.command("export")(config_files.export)
    app.command("import")(config_files.import_)
    app.command("rollout")(config_follow.rollout)
    app.command("watch")(config_follow.watch)
    main.add_typer(app, name="config")


@app.command("get")
def get(
    agent: Agent,
    key: Annotated[str | None, typer.Argument(help="One key: its value alone is printed.", show_default=False)] = None,
    *,
    revision: Annotated[int | None, typer.Option("--revision", help="As it was at that revision.")] = None,
    instance: Instance = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say which layer each value is from.")] = False,
    output: Output = "table",
) -> None:
    """Show what an agent gets: its own rows over those of '*'.

    [bold]perdure config get assistant[/]

    [bold]perdure config get assistant agent_role[/]

    [bold]perdure config get assistant --revision 12[/]

    [bold]perdure config get assistant --explain[/]
    """

    async def work(caller: Caller) -> dict[str, Any]:
        return await caller.get(agent, instance=instance, revision=revision, explain=explain)

    reply = run(calling(work))
    if key is not None:
        if key not in reply["configurations"]:
            fail(f"{agent} has no {key}; its keys: {', '.join(sorted(reply['configurations'])) or 'none'}")
        typer.echo(reply["configurations"][key])
    elif output == "json":
        print_json(reply)
    else:
        out.print(view.settings(reply))


@app.command("set")
def set_(
    agent: Agent,
    pairs: Annotated[list[str], typer.Argument(help="key=value, several at once.", show_default=False)],
    *,
    expected_revision: Expected = None,
    by: By = None,
    instance: Instance = None,
) -> None:
    """Set one or more keys, in one revision. The value is stored as the text that you write.

    [bold]perdure config set assistant agent_role='A kind pirate' llm_temperature=0.3[/]

    [bold]perdure config set assistant agent_instructions='["Be short.", "Ask first."]'[/]

    [bold]perdure config set assistant llm_api_key=secret://env/OPENAI_API_KEY[/]  (never the key itself)
    """
    values: dict[str, str | None] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            fail(f"{pair!r} is not key=value", code=2)
        values[key] = value
    _change(agent, values, expected=expected_revision, by=by, instance=instance)


@app.command("unset")
def unset(
    agent: Agent,
    keys: Annotated[list[str], typer.Argument(help="The keys to take away.", show_default=False)],
    *,
    expected_revision: Expected = None,
    by: By = None,
    instance: Instance = None,
) -> None:
    """Take keys away from an agent: what is below holds again, the row of '*' or the code's default.

    [bold]perdure config unset assistant agent_role max_iterations[/]
    """
    _change(agent, dict.fromkeys(keys), expected=expected_revision, by=by, instance=instance)


def _change(
    agent: str, values: dict[str, str | None], *, expected: int | None, by: str | None, instance: str | None
) -> None:
    async def work(caller: Caller) -> dict[str, Any]:
        return await caller.set(agent, values, expected=expected, by=by or user(), instance=instance)

    reply = run(calling(work))
    out.print(f"{reply['agent_name']} is at revision {reply['revision']}")
    for warning in reply.get("warnings", ()):
        err.print(f"[yellow]warning[/]: {escape(warning)}")


@app.command("history")
def history(
    agent: Agent,
    *,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="The newest so many changes.")] = 20,
    key: Annotated[str | None, typer.Option("--key", help="Changes of this key alone.")] = None,
    instance: Instance = None,
    output: Output = "table",
) -> None:
    """Show who changed what, and when, the newest first.

    [bold]perdure config history assistant[/]

    [bold]perdure config history assistant --key agent_role --limit 5[/]
    """

    async def work(caller: Caller) -> list[dict[str, Any]]:
        return await caller.history(agent, limit=limit, key=key, instance=instance)

    entries = run(calling(work))
    if output == "json":
        print_json(entries)
    else:
        out.print(view.history(agent, entries))


@app.command("rollback")
def rollback(
    agent: Agent,
    revision: Annotated[int, typer.Argument(help="The revision whose rows come back.", show_default=False)],
    *,
    by: By = None,
    instance: Instance = None,
) -> None:
    """Make an agent's own rows what they were at a revision. That is a change too, with a revision of its own.

    [bold]perdure config diff assistant 12[/]  (what would change)

    [bold]perdure config rollback assistant 12[/]
    """

    async def work(caller: Caller) -> dict[str, Any]:
        return await caller.rollback(agent, revision, by=by or user(), instance=instance)

    reply = run(calling(work))
    out.print(f"{agent} is as it was at revision {revision}; that is revision {reply['revision']}")


@app.command("diff")
def diff(
    agent: Agent,
    old: Annotated[int | None, typer.Argument(help="A revision.", show_default=False)] = None,
    new: Annotated[int | None, typer.Argument(help="Another one; default: now.", show_default=False)] = None,
    *,
    with_agent: Annotated[str | None, typer.Option("--agent", help="Compare with another agent.")] = None,
    with_file: Annotated[Path | None, typer.Option("--file", help="Compare with an exported file.")] = None,
    output: Output = "table",
) -> None:
    """Compare two revisions, two agents, or an agent and a file. Exit code 1 when they differ.

    [bold]perdure config diff assistant 12[/]  (revision 12 and now)

    [bold]perdure config diff assistant 12 15[/]

    [bold]perdure config diff assistant --agent support[/]

    [bold]perdure config diff assistant --file config.yaml[/]
    """
    if [old, with_agent, with_file].count(None) != 2:
        fail("give one thing to compare with: a revision, --agent or --file", code=2)

    sides = (f"revision {old}", "now" if new is None else f"revision {new}")
    if with_agent is not None or with_file is not None:
        sides = (agent, str(with_agent or with_file))

    async def work(caller: Caller) -> tuple[dict[str, str], dict[str, str]]:
        if with_agent is not None:
            return (await caller.get(agent))["configurations"], (await caller.get(with_agent))["configurations"]
        if with_file is not None:
            return await own_rows(caller, agent), files.read_file(with_file).get(agent, {})
        before = await caller.get(agent, revision=old)
        after = await caller.get(agent, revision=new)
        return before["configurations"], after["configurations"]

    before, after = run(calling(work))
    changes = view.changes(before, after)
    if output == "json":
        print_json(changes)
    else:
        out.print(view.difference(changes, sides=sides))
    if changes:
        raise typer.Exit(1)
