-- Schedules: moments that become runs, whatever process is up.
--
--   schedules   one row a schedule; `next_at` is its next moment, NULL when it has none
--
-- A scheduler locks the rows that are due (those that another one holds are passed over), inserts their runs and moves
-- `next_at` in one transaction. A run's id is derived from the schedule's name and the moment: one moment is one run.

CREATE TABLE schedules (
  name         text COLLATE "C" PRIMARY KEY,
  agent_name   text COLLATE "C" NOT NULL,
  workflow     text NOT NULL DEFAULT 'run',
  task         json,                                  -- NULL: the moment alone
  cron         text NOT NULL,
  timezone     text NOT NULL DEFAULT 'UTC',
  missed       text NOT NULL DEFAULT 'latest' CHECK (missed IN ('skip', 'latest', 'all')),
  missed_limit integer NOT NULL DEFAULT 100 CHECK (missed_limit BETWEEN 1 AND 1000),
  overlap      text NOT NULL DEFAULT 'allow' CHECK (overlap IN ('allow', 'skip')),
  queue_name   text COLLATE "C",
  priority     integer NOT NULL DEFAULT 0,
  fair_key     text,
  paused       boolean NOT NULL DEFAULT FALSE,
  next_at      timestamptz,
  last_at      timestamptz,                           -- the last moment that became a run
  last_run_id  text COLLATE "C",
  error        text,                                  -- why it was paused by itself
  created_at   timestamptz NOT NULL DEFAULT now(),
  updated_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX schedules_due ON schedules (next_at) WHERE NOT paused AND next_at IS NOT NULL;
CREATE INDEX schedules_agents ON schedules (agent_name, name);
