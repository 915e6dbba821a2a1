-- The durable engine's tables.
--
--   processes         one row a process that executes runs: its session lock and its lease
--   runs              one row a run; `status` and `epoch` decide who may write its journal
--   journal           one row an outcome: (run_id, seq), seq given by the holder of the epoch, in commit order
--   signals           what was sent to a run and has, or has not, been consumed by a journal row
--   config_snapshots  the configuration that runs stand on, by content hash
--
-- Ways through: accept (insert pending) -> claim (epoch + 1, running) -> journal rows, each fenced by the epoch
--   -> waiting (and back to pending by a signal, a timer or a child) -> completed | failed | cancelled | dead.

CREATE SEQUENCE process_lock_keys AS integer CYCLE;

CREATE TABLE processes (
  process_id         text COLLATE "C" PRIMARY KEY,
  agent_name         text NOT NULL,
  instance_id        text NOT NULL,
  lock_key           integer NOT NULL,      -- second key of the session advisory lock the process holds
  postmaster_started timestamptz NOT NULL,  -- the server start under which that lock was taken
  lease_until        timestamptz NOT NULL,  -- by this database's clock
  state              text NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'lost', 'gone')),
  started_at         timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX processes_live ON processes (lease_until) WHERE state = 'live';

CREATE TABLE runs (
  run_id           text COLLATE "C" PRIMARY KEY,
  turn             bigint GENERATED ALWAYS AS IDENTITY,  -- arrival order; within a session, the order of turns
  agent_name       text COLLATE "C" NOT NULL,
  workflow         text NOT NULL DEFAULT 'run',
  version          text,
  session_id       text COLLATE "C",
  parent_run_id    text COLLATE "C",
  parent_path      text,
  parent_notified  boolean NOT NULL DEFAULT FALSE,
  joined           boolean NOT NULL DEFAULT FALSE,       -- called by a workflow when it was there already
  task             json NOT NULL,
  task_hash        text NOT NULL,
  status           text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'running', 'waiting', 'paused',
                     'blocked', 'needs_review', 'completed', 'failed', 'cancelled', 'dead')),
  epoch            bigint NOT NULL DEFAULT 0,
  process_id       text COLLATE "C",
  attempts         integer NOT NULL DEFAULT 0,           -- claims since the last journal row
  wake_at          timestamptz,                          -- the first timer of a waiting run
  waiting_signals  text[],
  waiting_children text[],
  cancel_reason    text,                                 -- set when somebody asked for the end
  output           json,
  error            json,
  config_revision  bigint,
  config_hash      text,
  base_seq         bigint NOT NULL DEFAULT 0,            -- rows up to here belong to an earlier task (continue_as_new)
  seq_floor        bigint NOT NULL DEFAULT 0,            -- seqs up to here were used, by an end that was taken back
  end_seq          bigint,                               -- seq of the terminal event
  dispatched_at    timestamptz NOT NULL DEFAULT now(),   -- the last wake-up sent for it
  dispatches       smallint NOT NULL DEFAULT 0,          -- how often a wake-up was repeated while it is pending
  created_at       timestamptz NOT NULL DEFAULT now(),
  started_at       timestamptz,
  finished_at      timestamptz
) WITH (fillfactor = 80);

CREATE INDEX runs_pending  ON runs (dispatched_at)                WHERE status = 'pending';
CREATE INDEX runs_timers   ON runs (wake_at)                      WHERE status = 'waiting' AND wake_at IS NOT NULL;
CREATE INDEX runs_held     ON runs (process_id)                   WHERE status = 'running';
CREATE INDEX runs_listed   ON runs (agent_name, turn DESC);
CREATE INDEX runs_latest   ON runs (turn DESC);
CREATE INDEX runs_children ON runs (parent_run_id)                WHERE parent_run_id IS NOT NULL;
CREATE INDEX runs_minors   ON runs (parent_run_id)                WHERE parent_run_id IS NOT NULL AND finished_at IS NULL;
CREATE INDEX runs_awaiting ON runs USING gin (waiting_children)   WHERE status = 'waiting';
CREATE INDEX runs_untold   ON runs (finished_at)
  WHERE (parent_run_id IS NOT NULL OR joined) AND NOT parent_notified AND finished_at IS NOT NULL;
CREATE INDEX runs_sessions ON runs (agent_name, session_id, turn) WHERE session_id IS NOT NULL AND finished_at IS NULL;

CREATE TABLE journal (
  run_id          text COLLATE "C" NOT NULL,
  seq             bigint NOT NULL,
  path            text NOT NULL,            -- position in the workflow: 3, 4.1.2
  kind            text NOT NULL,            -- step, retry, sleep, signal, call, start, transaction, config, event, patch
  name            text NOT NULL,
  hash            text NOT NULL,            -- of the name and the arguments
  outcome         text NOT NULL,            -- ok, error, open, timeout
  result          json,
  error           json,
  attempt         integer NOT NULL DEFAULT 1,
  due_at          timestamptz,              -- when an open row (a sleep, a retry, a time-out) is due
  signal_seq      bigint,
  epoch           bigint NOT NULL,
  config_revision bigint,
  started_at      timestamptz NOT NULL,
  finished_at     timestamptz NOT NULL,
  PRIMARY KEY (run_id, seq)
);

CREATE TABLE signals (
  run_id     text COLLATE "C" NOT NULL,
  seq        bigint GENERATED ALWAYS AS IDENTITY,
  name       text NOT NULL,
  payload    json NOT NULL,
  signal_id  text,
  consumed   boolean NOT NULL DEFAULT FALSE,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (run_id, seq)
);
CREATE UNIQUE INDEX signals_once ON signals (run_id, signal_id) WHERE signal_id IS NOT NULL;
CREATE INDEX signals_unconsumed  ON signals (run_id, seq) WHERE NOT consumed;

CREATE TABLE config_snapshots (
  agent_name text COLLATE "C" NOT NULL,
  hash       text NOT NULL,
  revision   bigint NOT NULL,
  values     json NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (agent_name, hash)
);
