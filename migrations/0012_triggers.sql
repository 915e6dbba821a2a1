-- What begins runs by itself.
--
--   dead_letters  messages that a trigger could not make a run of: kept with the reason, to be looked at and sent again
--   cron_marks    the last moment of each schedule that has become a run

CREATE TABLE dead_letters (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  agent_name text COLLATE "C" NOT NULL,
  workflow   text NOT NULL,
  subject    text NOT NULL,
  message_id text,
  headers    json NOT NULL,
  data       bytea NOT NULL,
  reason     text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX dead_letters_listed ON dead_letters (agent_name, id DESC);
-- a message that is delivered again is dead once
CREATE UNIQUE INDEX dead_letters_once ON dead_letters (agent_name, workflow, message_id) WHERE message_id IS NOT NULL;

CREATE TABLE cron_marks (
  agent_name text COLLATE "C" NOT NULL,
  workflow   text NOT NULL,
  schedule   text NOT NULL,
  fired_for  timestamptz NOT NULL,
  PRIMARY KEY (agent_name, workflow, schedule)
);
