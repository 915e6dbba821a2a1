"""Every NATS subject, stream and consumer that Perdure uses, in one place."""

from __future__ import annotations

import re
import secrets
import time
from hashlib import blake2b
from typing import Final

# -- configuration ----------------------------------------------------------------------------------------------------
CONFIG_UPDATE: Final = "config.update"
CONFIG_GET: Final = "config.get"
CONFIG_SET: Final = "config.set"
CONFIG_HISTORY: Final = "config.history"
CONFIG_ROLLBACK: Final = "config.rollback"
CONFIG_APPLIED: Final = "config.applied"
CONFIG_SCHEMA: Final = "config.schema"
CONFIG_LIST: Final = "config.list"
CONFIG_ROLLOUT: Final = "config.rollout"
CONFIG_STATE: Final = "config.state"

# -- runs -------------------------------------------------------------------------------------------------------------
RUN_START: Final = "run.start"
RUN_ASK: Final = "run.ask"
RUN_EVENTS: Final = "run.events"
RUN_ENDED: Final = "run.ended"
PAYLOAD_PUT: Final = "payload.put"
PAYLOAD_GET: Final = "payload.get"
TASK: Final = "task"
WORK: Final = "work"
PROCESS: Final = "process"
SLOTS_WANTED: Final = "slots.want"
SLOTS_GRANTED: Final = "slots.grant"
QUEUE_LIST: Final = "queue.list"
QUEUE_LOOK: Final = "queue.look"
TIMER_SOON: Final = "timer.soon"
SCHEDULE: Final = "schedule"
HEALTH: Final = "health"

# -- streams. None covers a request subject: a stream would answer the request with its own acknowledgement. ----------
STREAM_WORK: Final = "WORK"
STREAM_TASKS: Final = "TASKS"
STREAM_EVENTS: Final = "RUN_EVENTS"

# -- queue groups -----------------------------------------------------------------------------------------------------
QUEUE_CONFIG: Final = "config-manager"
QUEUE_SCHEDULER: Final = "scheduler"

# -- consumers: an agent's has its name -------------------------------------------------------------------------------
DURABLE_TASKS: Final = "scheduler"

PROMPT_ANSWER: Final = "answer"  # agents.answer.…: where an agent waits for a user's answer to its question

AGENT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
RUN_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
SCHEDULE_NAME: Final = re.compile(r"(?:[A-Za-z0-9_-]{1,128}|cron\.[A-Za-z0-9_.-]{1,200})")
"""What people give, or what an agent's code declares: `cron.<agent>.<name>`."""
_NOT_IN_PROMPTS: Final = re.compile(r"[^a-z0-9-]+")

PLATFORM: Final = "default"
"""The tenant of everything that did not come through a key of another one."""
TENANT: Final = re.compile(r"[a-z0-9](?:-?[a-z0-9]){0,31}")
MARK: Final = "__"
"""Between a tenant's name and the rest of an id: an id says itself whose it is, and so do those of child runs."""

GLOBAL_LAYER: Final = "*"


def tenant_of(named: str) -> str:
    """The tenant to which a run, a conversation or a schedule belongs, by its id."""
    tenant, mark, _ = named.partition(MARK)
    return tenant if mark and TENANT.fullmatch(tenant) else PLATFORM


def agent_name(name: str) -> str:
    """The form of an agent's name that rows, subjects and routes use: lower case, a space becomes `-`.

    Raises `ValueError` for a name that is still not `[a-z0-9][a-z0-9_-]{0,62}`.
    """
    form = name.lower().replace(" ", "-")
    if not AGENT_NAME.fullmatch(form):
        raise ValueError(
            f"agent name {name!r} is not usable: it must match [a-z0-9][a-z0-9_-]{{0,62}} "
            "(letters, digits, '_' and '-', at most 63, the first a letter or a digit)"
        )
    return form


def kebab_case(class_name: str) -> str:
    """`MailSorter` -> `mail-sorter`: the name of an agent that gives none."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", class_name)
    return words.replace("_", "-").strip("-").lower()


def run_id(value: str, *, field: str = "run_id") -> str:
    """`value` itself if it is a usable run or session id; `ValueError` naming `field` otherwise."""
    if not RUN_ID.fullmatch(value):
        raise ValueError(f"{field} {value!r} is not usable: it must match [A-Za-z0-9_-]{{1,128}}")
    return value


def new_run_id() -> str:
    """An id for a new run: 32 hex digits, nobody's guess. Later ones sort after those of earlier milliseconds.

    So what is written at one time lies together in every index that begins with the run's id.
    """
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


OURS: Final = frozenset({"config", "run", "session", "task", "work", "process", "health", "agents", "ns", "redis"})
"""First tokens of subjects on which Perdure itself listens."""


def free_subject(value: str, *, field: str = "subject") -> str:
    """`value` itself if anybody may publish on it without Perdure taking it for its own; else `ValueError`."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", value) or len(value) > 255:
        raise ValueError(
            f"{field} {value[:300]!r} is not usable: tokens of letters, digits, '_' and '-', with dots between"
        )
    first = value.partition(".")[0]
    if first in OURS or first.startswith("_"):
        raise ValueError(f"{field} {value!r} is not usable: subjects that begin with {first!r} are not free")
    return value


def config_get(agent: str) -> str:
    """Request subject for an agent's configuration."""
    return f"{CONFIG_GET}.{agent}"


def config_set(agent: str) -> str:
    """Request subject that changes an agent's configuration."""
    return f"{CONFIG_SET}.{agent}"


def config_history(agent: str) -> str:
    """Request subject for an agent's configuration history."""
    return f"{CONFIG_HISTORY}.{agent}"


def config_rollback(agent: str) -> str:
    """Request subject that sets an agent's configuration back to a revision."""
    return f"{CONFIG_ROLLBACK}.{agent}"


def config_state(agent: str) -> str:
    """Request subject on which each instance answers with its last `config.applied`."""
    return f"{CONFIG_STATE}.{agent}"


def config_schema(agent: str) -> str:
    """Request subject that publishes, or asks for, the JSON Schema of an agent's settings."""
    return f"{CONFIG_SCHEMA}.{agent}"


def config_applied(agent: str) -> str:
    """Event subject on which each agent process says what became of a change."""
    return f"{CONFIG_APPLIED}.{agent}"


def run_start(agent: str) -> str:
    """Request subject that accepts a run."""
    return f"{RUN_START}.{agent}"


def run_ask(agent: str) -> str:
    """Request subject that accepts a run and answers with its outcome."""
    return f"{RUN_ASK}.{agent}"


def run_events(run: str) -> str:
    """Event subject of one run."""
    return f"{RUN_EVENTS}.{run}"


def run_ended(agent: str, run: str) -> str:
    """Wake-up for whoever waits for a run's end; the row in Postgres is what counts.

    The agent is part of it, so that NATS can refuse an agent that tells the ends of others' runs.
    """
    return f"{RUN_ENDED}.{agent}.{run}"


def task(agent: str) -> str:
    """JetStream subject on which a plain publish becomes a durable run."""
    return f"{TASK}.{agent}"


def work(agent: str) -> str:
    """JetStream subject that wakes a replica of an agent for a run."""
    return f"{WORK}.{agent}"


def process_nudge(process_id: str) -> str:
    """Core subject on which one process is told to look at one of its runs (a signal, a cancel)."""
    return f"{PROCESS}.{process_id}.nudge"


def process_offer(process_id: str) -> str:
    """Core subject on which one process is told of a run of a queue in which it has a place."""
    return f"{PROCESS}.{process_id}.offer"


def process_claimed(process_id: str) -> str:
    """Core subject on which one process is told of runs that a scheduler has claimed for it as it accepted them."""
    return f"{PROCESS}.{process_id}.claimed"


def slots_wanted(agent: str) -> str:
    """Core subject on which a scheduler asks the processes of an agent for slots."""
    return f"{SLOTS_WANTED}.{agent}"


def slots_granted(scheduler: str, agent: str) -> str:
    """Core subject on which a process of an agent grants slots to one scheduler."""
    return f"{SLOTS_GRANTED}.{scheduler}.{agent}"


def prompt_token(agent: str) -> str:
    """An agent's name as the subjects of the agent protocol take it: lower case letters, digits and `-`."""
    return _NOT_IN_PROMPTS.sub("-", agent.lower())


def trigger_consumer(agent: str, workflow: str, subject: str) -> str:
    """The durable consumer of a workflow that messages of `subject`, in a stream, begin."""
    return f"{agent}-{workflow}-{blake2b(subject.encode(), digest_size=10).hexdigest()[:8]}"


def health(service: str, instance: str) -> str:
    """Request subject on which one instance of a service tells its health."""
    return f"{HEALTH}.{service}.{instance}"


def inbox(user: str) -> str:
    """What the inboxes of a user of the server begin with, which nobody else may hear where permissions say so."""
    return f"_REPLY.{user}"
