"""`perdure deploy`: what servers are told of who may do what."""

from __future__ import annotations

import os
import re
from typing import Annotated

import typer

from perdure.bus import permissions
from perdure.cli.console import fail, log_warnings, out, run
from perdure.settings import load_settings
from perdure.store import acl, roles
from perdure.subjects import agent_name, trigger_consumer

app = typer.Typer(
    help="What servers are told of who may do what.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


_TIME = re.compile(r"[1-9][0-9]{0,5}[smh]")
_CONSUMER = re.compile(r"(?P<stream>[A-Za-z0-9_-]+):(?P<subject>[^:]+):(?P<workflow>[A-Za-z_][A-Za-z0-9_]*)")


def register(main: typer.Typer) -> None:
    """Add the commands."""
    app.callback()(_nothing)
    main.add_typer(app, name="deploy")


def _nothing() -> None:
    pass  # what would stand before a command


@app.command("nats-permissions")
def nats_permissions(
    agents: Annotated[list[str] | None, typer.Argument(metavar="[AGENT]...", help="Agents by their names.")] = None,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="The whole block `authorization`: the services, and the agents named.")
    ] = False,
    publish: Annotated[
        list[str] | None, typer.Option("--publish", help="A subject that these agents may publish on besides.")
    ] = None,
    subscribe: Annotated[
        list[str] | None, typer.Option("--subscribe", help="A subject that these agents may hear besides.")
    ] = None,
    prompts: Annotated[
        bool, typer.Option(help="They answer the agent protocol, and hear events of runs for it.")
    ] = True,
    consume: Annotated[
        list[str] | None,
        typer.Option("--consume", help="STREAM:SUBJECT:WORKFLOW of a trigger of these agents that reads a stream."),
    ] = None,
    reply_time: Annotated[
        str, typer.Option("--reply-time", help="How long they may answer a prompt, such as 30m or 2h.")
    ] = permissions.REPLY_TIME,
    callbacks: Annotated[
        str, typer.Option("--callbacks", help="Where the scheduler may tell the ends of runs.")
    ] = permissions.CALLBACKS,
) -> None:
    """Print the users of nats-server's configuration: one for each AGENT, or with --all those of the services, too.

    Passwords come from the environment of nats-server: NATS_PASSWORD_SCHEDULER and so on, one for each user.
    """
    if not agents and not everything:
        fail("name an agent, or give --all for the services", code=2)
    settings = load_settings()
    namespace, bucket = settings.namespace, settings.payload_store == "nats"
    if not _TIME.fullmatch(reply_time):
        fail(f"--reply-time {reply_time}: give a number with s, m or h, such as 30m", code=2)
    try:
        for subject in (*(publish or ()), *(subscribe or ()), callbacks):
            permissions.usable(subject)
        users = [
            permissions.agent(
                name,
                namespace=namespace,
                prompts=prompts,
                bucket=bucket,
                reply_time=reply_time,
                publish=publish or (),
                subscribe=subscribe or (),
                consume=[_consumer(agent_name(name), each) for each in consume or ()],
            )
            for name in dict.fromkeys(agents or ())
        ]
    except ValueError as error:
        fail(str(error), code=2)
    if everything:
        services = permissions.services(namespace=namespace, callbacks=callbacks, bucket=bucket)
        typer.echo(permissions.render([*services, *users]), nl=False)
    else:
        typer.echo("\n".join(permissions.render_user(user) for user in users))


@app.command("postgres-roles")
def postgres_roles(
    agents: Annotated[list[str] | None, typer.Argument(metavar="[AGENT]...", help="Agents by their names.")] = None,
) -> None:
    """Make a Postgres role for each service and each AGENT, and give it what it needs and nothing more.

    DATABASE_URL names the owner of the schema, who runs `perdure migrate`. Run it again after that. Passwords come from
    the environment: POSTGRES_PASSWORD_SCHEDULER and so on; a role without one keeps the one that it has.
    """
    settings = load_settings()
    log_warnings(settings)
    try:
        named = [agent_name(each) for each in dict.fromkeys(agents or ())]
        for each in named:
            roles.role_of(each)
    except ValueError as error:
        fail(str(error), code=2)
    words = {
        user: word
        for user in (*roles.SERVICES, *named)
        if (word := os.environ.get(f"POSTGRES_PASSWORD_{user.upper().replace('-', '_')}"))
    }
    for role in run(roles.apply_roles(settings, named, words)):
        out.print(role)


@app.command("redis-acl")
def redis_acl(
    agents: Annotated[list[str] | None, typer.Argument(metavar="[AGENT]...", help="Agents by their names.")] = None,
) -> None:
    """Print the users of Redis, as its `aclfile` has them: those of the services, and one for each AGENT.

    Passwords come from the environment, REDIS_PASSWORD_SCHEDULER and so on; what is printed has their hashes.
    """
    settings = load_settings()
    try:
        named = [agent_name(each) for each in dict.fromkeys(agents or ())]
        typer.echo(acl.render(named, settings, os.environ), nl=False)
    except ValueError as error:
        fail(str(error), code=2)


def _consumer(agent: str, said: str) -> permissions.Consumer:
    """What `--consume` says. Raises `ValueError`."""
    if (found := _CONSUMER.fullmatch(said)) is None:
        raise ValueError(f"--consume {said}: give STREAM:SUBJECT:WORKFLOW, as in @on(SUBJECT, stream=STREAM)")
    subject = permissions.usable(found["subject"])
    return permissions.Consumer(found["stream"], trigger_consumer(agent, found["workflow"], subject), subject)
