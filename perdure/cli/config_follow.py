"""`perdure config watch` and `rollout`: changes as they happen, and changes that happen by and by."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from perdure.cli import config_view as view
from perdure.cli.config_calls import Caller, calling
from perdure.cli.config_options import By, user
from perdure.cli.console import fail, out, run


def watch(
    agent: Annotated[str | None, typer.Argument(help="Default: all.", show_default=False)] = None,
) -> None:
    """Follow changes, and what became of them in each agent process, until Ctrl-C.

    [bold]perdure config watch[/]

    [bold]perdure config watch assistant[/]
    """

    async def work(caller: Caller) -> None:
        await caller.watch(agent, lambda line: out.print(line, soft_wrap=True))

    run(calling(work))


def rollout(
    agent: Annotated[str, typer.Argument(help="The agent.", show_default=False)],
    pairs: Annotated[
        list[str] | None, typer.Argument(help="key=value, several at once; none: how it stands.", show_default=False)
    ] = None,
    *,
    instances: Annotated[int | None, typer.Option("--instances", min=1, help="How many try it first.")] = None,
    share: Annotated[float | None, typer.Option("--share", min=0, max=1, help="The same as a share of all.")] = None,
    bake: Annotated[float, typer.Option("--bake", min=0, help="Seconds without trouble before all get it.")] = 60.0,
    max_failures: Annotated[int, typer.Option("--max-failures", min=0, help="Failed runs that are no trouble.")] = 0,
    abort: Annotated[bool, typer.Option("--abort", help="Take the change that bakes back.")] = False,
    promote: Annotated[bool, typer.Option("--promote", help="Give the change that bakes to all now.")] = False,
    by: By = None,
) -> None:
    """Try a change on a few instances first. Then it goes to all, or back, by itself.

    It goes back when an instance rejects it, when runs fail there, or when somebody changes the same keys meanwhile.

    [bold]perdure config rollout assistant llm_model=gpt-5 --instances 1 --bake 300[/]

    [bold]perdure config rollout assistant[/]  (how it stands)

    [bold]perdure config rollout assistant --abort[/]
    """
    body: dict[str, Any] = {"changed_by": by or user()}
    if abort or promote:
        body["action"] = "abort" if abort else "promote"
    elif pairs:
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if len(values) != len(pairs):
            fail("each change is key=value", code=2)
        body |= {"configurations": values, "bake_seconds": bake, "max_failures": max_failures}
        body |= {"share": share} if share is not None else {"instances": instances or 1}

    async def work(caller: Caller) -> dict[str, Any]:
        return await caller.rollout(agent, body)

    out.print(view.rollouts(agent, run(calling(work))["rollouts"]))
