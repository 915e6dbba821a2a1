"""Every metric that a process of the platform may show: its kind, its labels, and what it says.

Labels are bounded: agents, queues, models, tools, endpoints, outcomes; never a run, a session or a tenant. What callers
could make up without end (the names of agents that are not there, of tools that a model invents) is shown as `other`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; `labels` are in the order in which readings give their values."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "summary"]
    help: str
    labels: tuple[str, ...] = ()


_ALL: Final = (
    # -- every process
    Metric("perdure_process_info", "gauge", "1; its labels say what the process is.", ("service", "version")),
    Metric("perdure_ready", "gauge", "Whether the process takes work: 1 or 0."),
    Metric("perdure_health_status", "gauge", "What a check found: 0 ok, 1 warning, 2 critical.", ("check",)),
    Metric("perdure_event_loop_lag_seconds", "gauge", "The longest that the event loop was held in the last 30 s."),
    Metric("perdure_nats_connected", "gauge", "Whether NATS is connected: 1 or 0."),
    Metric("perdure_nats_reconnects_total", "counter", "How often NATS had to be connected again."),
    Metric("perdure_nats_requests_total", "counter", "Requests that arrived.", ("endpoint",)),
    Metric("perdure_nats_request_errors_total", "counter", "Requests answered with an error.", ("endpoint", "code")),
    Metric("perdure_nats_request_seconds", "summary", "Time that requests took to be handled.", ("endpoint",)),
    Metric("perdure_nats_requests_open", "gauge", "Requests that are handled now.", ("endpoint",)),
    Metric("perdure_nats_requests_waiting", "gauge", "Requests that wait for a place.", ("endpoint",)),
    Metric("perdure_postgres_connections", "gauge", "Connections of the pool.", ("state",)),
    Metric("perdure_postgres_connections_limit", "gauge", "Connections that the pool may have."),
    Metric("perdure_audit_broken", "gauge", "Whether the last look found the audit log touched: 1 or 0.", ("chain",)),
    # -- agents: the engine
    Metric("perdure_runs_claimed_total", "counter", "Claims of runs, each time that one came into memory.", ("agent",)),
    Metric("perdure_runs_started_total", "counter", "Runs that began here for the first time.", ("agent",)),
    Metric("perdure_runs_left_total", "counter", "Runs that left memory, by their state then.", ("agent", "status")),
    Metric("perdure_run_seconds", "histogram", "From the first claim to the end, waits included.", ("agent",)),
    Metric("perdure_runs_in_memory", "gauge", "Runs that the process holds.", ("agent",)),
    Metric("perdure_run_slots", "gauge", "Runs that the process may hold.", ("agent",)),
    Metric("perdure_claims_waiting", "gauge", "Wake-ups whose claim is not decided.", ("agent",)),
    Metric("perdure_runs_fenced_total", "counter", "Runs dropped because another process holds them.", ("agent",)),
    Metric("perdure_steps_started_total", "counter", "Tries of steps that began.", ("agent",)),
    Metric("perdure_step_failures_total", "counter", "Tries of steps that failed.", ("agent", "outcome")),
    Metric("perdure_steps_running", "gauge", "Steps under way.", ("agent",)),
    Metric("perdure_journal_rows_total", "counter", "Rows written to the journal.", ("agent",)),
    Metric("perdure_journal_commits_total", "counter", "Commits of the journal.", ("agent",)),
    Metric("perdure_journal_commit_seconds", "histogram", "Time of one group of commits.", ("agent",)),
    Metric("perdure_journal_waiting", "gauge", "Rows and moves that wait for the next commit.", ("agent",)),
    Metric("perdure_events_dropped_total", "counter", "Events and wake-ups that NATS could not take.", ("agent",)),
    Metric("perdure_lease_held", "gauge", "Whether the process may start steps: 1 or 0.", ("agent",)),
    Metric("perdure_dead_letters_total", "counter", "Messages that could not begin a run.", ("agent",)),
    # -- agents: configuration
    Metric("perdure_config_revision", "gauge", "The revision that is live.", ("agent",)),
    Metric("perdure_config_held_keys", "gauge", "Keys held at their last good value.", ("agent",)),
    Metric("perdure_config_stale", "gauge", "Whether no ConfigManager was heard at the last look.", ("agent",)),
    Metric("perdure_config_applied_total", "counter", "Changes, by what came of them.", ("agent", "result")),
    # -- agents: models and tools
    Metric("perdure_model_requests_total", "counter", "Calls of models.", ("agent", "provider", "model", "outcome")),
    Metric("perdure_model_request_seconds", "histogram", "Time of answers of models.", ("agent", "provider", "model")),
    Metric(
        "perdure_model_tokens_total", "counter", "Tokens, `input` and `output`.", ("agent", "provider", "model", "type")
    ),
    Metric(
        "perdure_model_cost_total",
        "counter",
        "Cost of answers, in the currency of the prices.",
        ("agent", "provider", "model"),
    ),
    Metric("perdure_model_breakers_open", "gauge", "Endpoints that are not asked because they failed.", ("agent",)),
    Metric("perdure_tool_calls_total", "counter", "Calls of tools.", ("agent", "tool", "outcome")),
    Metric("perdure_model_budgets_spent_total", "counter", "Runs ended by a budget, by its key.", ("agent", "budget")),
    # -- the scheduler
    Metric("perdure_runs_accepted_total", "counter", "Starts, by what they came to.", ("result",)),
    Metric("perdure_runs_claimed_at_start_total", "counter", "Runs that were claimed as they were accepted."),
    Metric("perdure_starts_waiting", "gauge", "Starts that wait to be committed."),
    Metric("perdure_runs_pending", "gauge", "Runs that wait for a process.", ("agent",)),
    Metric("perdure_runs_pending_oldest_seconds", "gauge", "How long the oldest of them waits.", ("agent",)),
    Metric("perdure_runs_redispatched_total", "counter", "Wake-ups repeated by the sweeper."),
    Metric("perdure_timers_fired_total", "counter", "Runs woken because their time had come."),
    Metric("perdure_processes_lost_total", "counter", "Processes found lost.", ("reason",)),
    Metric("perdure_runs_requeued_total", "counter", "Runs of lost processes that were given to others."),
    Metric("perdure_runs_dead_total", "counter", "Runs that used up their attempts."),
    Metric("perdure_callbacks_total", "counter", "Tries of callbacks, by what came of them.", ("outcome",)),
    Metric("perdure_callbacks_due", "gauge", "Callbacks that are due."),
    Metric("perdure_callbacks_lag_seconds", "gauge", "For how long the oldest of them is due."),
    # -- the ConfigManager
    Metric("perdure_config_table_revision", "gauge", "The revision that the ConfigManager has read."),
    Metric("perdure_config_broadcast_lag", "gauge", "Revisions that are read and not yet broadcast, by the leader."),
    Metric("perdure_config_leading", "gauge", "Whether this ConfigManager is the one that broadcasts: 1 or 0."),
    Metric("perdure_config_listening", "gauge", "Whether it hears of changes from Postgres: 1 or 0."),
    Metric("perdure_config_held_values", "gauge", "Bad values held back, of all agents."),
    # -- the gateway
    Metric("perdure_http_responses_total", "counter", "Answers by route and status.", ("method", "route", "status")),
    Metric("perdure_http_response_seconds", "histogram", "Time until an answer began."),
    Metric("perdure_http_requests_open", "gauge", "Requests under way."),
    Metric("perdure_http_streams_open", "gauge", "Event streams that are read."),
    Metric("perdure_http_shed_total", "counter", "Requests refused at overload."),
)

CATALOGUE: Final[dict[str, Metric]] = {metric.name: metric for metric in _ALL}
"""By name."""
