"""What each part of the platform may say and hear on NATS: the one table, from which nats-server's configuration comes.

Whatever is not listed is refused by the server. Each user has inboxes of its own (`_REPLY.<user>.>`), so that nobody
hears the replies that are meant for others; people and their programs also hear those that any NATS client makes
(`_INBOX.>`). An agent's rights on JetStream name its own consumer alone.

The ConfigManager and the scheduler, which answer everybody all the time, may fill any inbox. The others may where they
were asked, for a while (`allow_responses`): the server remembers each message that has a reply subject for that while,
wake-ups from JetStream too, at about 130 bytes each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from perdure import subjects
from perdure.bus.bucket import config_of
from perdure.bus.namespace import AS_THEY_ARE, ROOT

CONFIG_MANAGER: Final = "config-manager"
SCHEDULER: Final = "scheduler"
GATEWAY: Final = "gateway"
CONSOLE: Final = "console"
CLIENT: Final = "client"
OPERATOR: Final = "operator"
SERVICES: Final = (CONFIG_MANAGER, SCHEDULER, GATEWAY, CONSOLE, CLIENT, OPERATOR)
CALLBACKS: Final = "callbacks.>"
ONE_REPLY: Final = "{max: 1, expires: '1m'}"
REPLY_TIME: Final = "30m"  # for the whole answer to a prompt

_PLAIN_INBOXES: Final = "_INBOX.>"  # of any NATS client, such as the public SDK of the agent protocol
_ANY_INBOX: Final = (_PLAIN_INBOXES, subjects.inbox(">"))
_SUBJECT: Final = re.compile(r"(([A-Za-z0-9_$-]+|\*)\.)*([A-Za-z0-9_$-]+|\*|>)")
_API: Final = "$JS.API"
_STREAMS: Final = (subjects.STREAM_WORK, subjects.STREAM_TASKS, subjects.STREAM_EVENTS)
_CONFIG_REQUESTS: Final = (
    *(subjects.CONFIG_GET, subjects.CONFIG_SET, subjects.CONFIG_HISTORY),
    *(subjects.CONFIG_ROLLBACK, subjects.CONFIG_SCHEMA, subjects.CONFIG_ROLLOUT),
)
# A service follows the log level of the global layer: it reads that when it hears of a change.
_READS_LEVEL: Final = subjects.CONFIG_GET
_HEARS_LEVEL: Final = subjects.CONFIG_UPDATE


@dataclass(frozen=True, slots=True)
class Permissions:
    """What one user may do. `replies`: to a request that it heard, as nats-server reads it; "": not at all."""

    user: str
    about: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    replies: str


@dataclass(frozen=True, slots=True)
class Consumer:
    """A durable pull consumer: its stream, its name, and the subject that it takes."""

    stream: str
    durable: str
    subject: str


def services(*, namespace: str = "", callbacks: str = CALLBACKS, bucket: bool = False) -> list[Permissions]:
    """The users of the services, of programs that start runs, and of people. `callbacks`: where ends may be told.

    `bucket`: with large values in the object store, see `perdure.bus.bucket`.
    """
    console = _user(
        namespace, CONSOLE, "a page over the gateway's HTTP, which needs nothing here but to be found", (), ()
    )
    scheduler = _scheduler(namespace, callbacks, bucket)
    return [_config_manager(namespace), scheduler, *_callers(namespace, bucket), console]


def agent(
    name: str,
    *,
    namespace: str = "",
    prompts: bool = True,
    bucket: bool = False,
    reply_time: str = REPLY_TIME,
    publish: Iterable[str] = (),
    subscribe: Iterable[str] = (),
    consume: Iterable[Consumer] = (),
) -> Permissions:
    """The user of one agent. `prompts`: it answers the agent protocol, each prompt within `reply_time` (as "30m").

    `bucket`: it keeps large values in the object store. `publish`, `subscribe`: subjects of its own besides; `consume`:
    where its triggers read. Raises `ValueError` for a
    name that is no agent's, or that a service has.
    """
    name = subjects.agent_name(name)
    if name in SERVICES:
        raise ValueError(f"{name} is the name of a service; call the agent something else")
    mine = Consumer(subjects.STREAM_WORK, name, subjects.work(name))
    says = [
        *(subjects.config_get(name), subjects.config_schema(name), subjects.config_applied(name)),
        *(subjects.work("*"), subjects.run_events("*"), subjects.run_ended(name, "*")),
        *(subjects.process_nudge("*.*.*"), subjects.process_offer("*.*.*")),
        *(subjects.TIMER_SOON, subjects.QUEUE_LOOK, subjects.run_ask(name), subjects.slots_granted("*", name)),
        *(f"{_API}.STREAM.INFO.{_stream(namespace, each)}" for each in _STREAMS),
        *(subject for each in (mine, *consume) for subject in _consumes(namespace, each)),
        *(_keeps(namespace) if bucket else ()),
        *publish,
    ]
    hears = [
        *(subjects.CONFIG_UPDATE, subjects.config_state(name)),
        *(subjects.process_nudge(f"{name}.*.*"), subjects.process_offer(f"{name}.*.*")),
        *(subjects.process_claimed(f"{name}.*.*"), subjects.slots_wanted(name)),
        *subscribe,
    ]
    if prompts:
        token = subjects.prompt_token(name)
        says.append(f"agents.hb.{token}.*.*")
        hears += [
            *(f"agents.{kind}.{token}.*.*" for kind in ("prompt", "status", subjects.PROMPT_ANSWER)),
            *(f"$SRV.{verb}{rest}" for verb in ("PING", "INFO", "STATS") for rest in (".agents", ".agents.*")),
            subjects.run_events("*"),
        ]
    replies = f"{{max: -1, expires: '{reply_time}'}}" if prompts else ONE_REPLY
    return _user(namespace, name, f"the agent {name}", says, hears, replies=replies)


def _consumes(namespace: str, each: Consumer) -> Iterator[str]:
    """Make the consumer, take from it, acknowledge, and look whether its stream is there.

    The filter is part of the subject, so a consumer of others' messages cannot be made under this one's name.
    """
    stream = _stream(namespace, each.stream)
    yield f"{_API}.CONSUMER.CREATE.{stream}.{each.durable}.{_at(namespace, each.subject)}"
    yield f"{_API}.CONSUMER.MSG.NEXT.{stream}.{each.durable}"
    yield f"$JS.ACK.{stream}.{each.durable}.>"


def _keeps(namespace: str) -> Iterator[str]:
    """Read large values from the object store, and put them there."""
    config = config_of(namespace)
    yield from (f"{_API}.{verb}.GET.{config.name}" for verb in ("STREAM.MSG", "DIRECT"))
    yield from config.subjects or ()


def _config_manager(namespace: str) -> Permissions:
    says = [subjects.CONFIG_UPDATE, subjects.config_state("*"), *_ANY_INBOX, _READS_LEVEL]
    hears = [*_CONFIG_REQUESTS, *(f"{each}.>" for each in _CONFIG_REQUESTS), subjects.CONFIG_LIST, _HEARS_LEVEL]
    return _user(namespace, CONFIG_MANAGER, "answers for configuration, and broadcasts it", says, hears, replies="")


def _scheduler(namespace: str, callbacks: str, bucket: bool) -> Permissions:
    streams = [_stream(namespace, each) for each in _STREAMS]
    if bucket:
        streams.append(str(config_of(namespace).name))
    tasks = Consumer(subjects.STREAM_TASKS, subjects.DURABLE_TASKS, subjects.task(">"))
    says = [
        *(subjects.work("*"), subjects.run_events("*"), subjects.run_ended("*", "*")),
        *(subjects.process_nudge("*.*.*"), subjects.process_offer("*.*.*"), subjects.TIMER_SOON, subjects.QUEUE_LOOK),
        *(subjects.process_claimed("*.*.*"), subjects.slots_wanted("*")),
        *(f"{_API}.STREAM.{verb}.{each}" for each in streams for verb in ("INFO", "CREATE", "UPDATE")),
        *_consumes(namespace, tasks),
        *((*_keeps(namespace), f"{_API}.STREAM.PURGE.{config_of(namespace).name}") if bucket else ()),
        *(
            f"{_API}.DIRECT.GET.{_stream(namespace, subjects.STREAM_EVENTS)}",
            f"{_API}.STREAM.NAMES",
            callbacks,
            *_ANY_INBOX,
            _READS_LEVEL,
        ),
    ]
    hears = [
        *(subjects.run_start("*"), subjects.run_ask("*"), "run.*", "session.*", f"{subjects.SCHEDULE}.*"),
        *(subjects.PAYLOAD_PUT, subjects.PAYLOAD_GET, subjects.QUEUE_LIST, subjects.QUEUE_LOOK, subjects.TIMER_SOON),
        *(subjects.run_ended("*", "*"), subjects.slots_granted("*", "*"), _HEARS_LEVEL),
    ]
    about = "accepts runs, wakes what is due, requeues what was lost"
    return _user(namespace, SCHEDULER, about, says, hears, replies="")


def _callers(namespace: str, bucket: bool) -> Iterator[Permissions]:
    events = _stream(namespace, subjects.STREAM_EVENTS)
    watches = [subjects.run_events("*"), subjects.run_ended("*", "*")]
    reads = [
        *(subjects.PAYLOAD_PUT, subjects.PAYLOAD_GET, f"{_API}.DIRECT.GET.{events}"),
        *("$SRV.PING", "$SRV.INFO", "$SRV.STATS", "$SRV.PING.*", "$SRV.INFO.*", "$SRV.STATS.*"),
    ]
    starts = [subjects.run_start("*"), subjects.run_ask("*"), *reads]
    config = [f"{each}.>" for each in _CONFIG_REQUESTS if each not in (subjects.CONFIG_SCHEMA, subjects.CONFIG_ROLLOUT)]
    steers = ["run.*", "session.*", subjects.QUEUE_LIST, f"{subjects.SCHEDULE}.*", *starts]
    prompts = ["agents.prompt.>", "agents.status.>", f"agents.{subjects.PROMPT_ANSWER}.>"]
    yield _user(
        namespace, GATEWAY, "the platform over HTTP", [*steers, *config, _READS_LEVEL], [*watches, _HEARS_LEVEL]
    )
    says = [
        *(f"run.{verb}" for verb in ("get", "list", "history", "tree", "cancel", "signal")),
        *("session.list", "session.history", "session.reset", subjects.task("*"), *starts, *prompts),
    ]
    hears = [*watches, "agents.hb.>", _PLAIN_INBOXES]
    yield _user(namespace, CLIENT, "a program that starts runs: no approvals, no configuration", says, hears)
    says = [
        *(*steers, *_CONFIG_REQUESTS, *(f"{each}.>" for each in _CONFIG_REQUESTS)),
        *(
            subjects.CONFIG_LIST,
            subjects.config_state("*"),
            subjects.task("*"),
            "$SRV.>",
            f"{subjects.HEALTH}.>",
            *prompts,
        ),
        *(f"{_API}.{verb}" for verb in ("INFO", "STREAM.LIST")),  # what `perdure doctor` looks at
        *(
            f"{_API}.{verb}.{_stream(namespace, each)}"
            for verb in ("STREAM.INFO", "CONSUMER.LIST")
            for each in _STREAMS
        ),
        *((f"{_API}.STREAM.INFO.{config_of(namespace).name}",) if bucket else ()),
    ]
    hears = [*hears, subjects.CONFIG_UPDATE, subjects.config_applied("*")]
    yield _user(namespace, OPERATOR, "people, with the command line", says, hears)


def _user(
    namespace: str, user: str, about: str, says: Iterable[str], hears: Iterable[str], *, replies: str = ONE_REPLY
) -> Permissions:
    """With what every process needs: its inboxes, to be found, and to be asked how it is."""
    found = [f"$SRV.{verb}{rest}" for verb in ("PING", "INFO", "STATS") for rest in ("", f".{user}", f".{user}.*")]
    asked = [f"$SRV.PING.{user}", subjects.health(user, "*")]
    return Permissions(
        user,
        about,
        publish=_placed(namespace, [*says, *asked]),
        subscribe=_placed(namespace, [f"{subjects.inbox(user)}.>", *hears, *found, subjects.health(user, "*")]),
        replies=replies,
    )


def _placed(namespace: str, each: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_at(namespace, subject) for subject in each))


def _at(namespace: str, subject: str) -> str:
    return f"{ROOT}.{namespace}.{subject}" if namespace and not subject.startswith(AS_THEY_ARE) else subject


def _stream(namespace: str, name: str) -> str:
    return f"{namespace}-{name}" if namespace else name


# -- as nats-server reads it ------------------------------------------------------------------------------------------


def usable(subject: str) -> str:
    """`subject` itself, if permissions can name it. Raises `ValueError`."""
    if not _SUBJECT.fullmatch(subject):
        raise ValueError(f"subject {subject!r} is not usable: tokens with dots between, `*` for one, `>` for the rest")
    return subject


def password_variable(user: str) -> str:
    """The environment variable of nats-server that holds a user's password."""
    return f"NATS_PASSWORD_{user.upper().replace('-', '_')}"


def render(users: Sequence[Permissions]) -> str:
    """The block `authorization` of nats-server, with these users and no other one."""
    inner = "\n".join(render_user(each) for each in users)
    return f"authorization {{\n  users = [\n{inner}\n  ]\n}}\n"


def render_user(user: Permissions) -> str:
    """One entry of `users`."""
    lines = [
        f"    # {user.about}",
        "    {",
        f'      user: "{user.user}", password: ${password_variable(user.user)}',
        "      permissions: {",
        *_listed("publish", user.publish),
        *_listed("subscribe", user.subscribe),
        *([f"        allow_responses: {user.replies}"] if user.replies else []),
        "      }",
        "    }",
    ]
    return "\n".join(lines)


def _listed(name: str, each: Iterable[str]) -> Iterator[str]:
    yield f"        {name}: {{ allow: ["
    yield from (f'          "{subject}"' for subject in each)
    yield "        ] }"
