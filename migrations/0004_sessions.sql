-- Conversations of agents.
--
--   sessions          one row a conversation: which messages count, and the run whose turn is open
--   session_messages  one row a message, never changed; seq is given under the lock of the session's row
--   session_results   background tool calls: scheduled, finished, and at which seq their result came in
--
-- Ways through: a turn opens (locks the row, takes in finished results and the user's message) -> appends what was said,
--   each time in the transaction of a journal row -> closes with the answer. A background tool's child run writes its
--   result here; the next turn takes it in.

CREATE TABLE sessions (
  agent_name  text COLLATE "C" NOT NULL,
  session_id  text COLLATE "C" NOT NULL,  -- of a run without one: its run_id
  first_seq   bigint NOT NULL DEFAULT 1,  -- messages before it were forgotten by a reset
  next_seq    bigint NOT NULL DEFAULT 1,
  turn_run_id text COLLATE "C",           -- the run whose turn is open
  created_at  timestamptz NOT NULL DEFAULT now(),
  updated_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (agent_name, session_id)
) WITH (fillfactor = 70);

CREATE INDEX sessions_age ON sessions (updated_at);

CREATE TABLE session_messages (
  agent_name text COLLATE "C" NOT NULL,
  session_id text COLLATE "C" NOT NULL,
  seq        bigint NOT NULL,
  run_id     text COLLATE "C" NOT NULL,
  message    json NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (agent_name, session_id, seq)
);

CREATE TABLE session_results (
  agent_name  text COLLATE "C" NOT NULL,
  session_id  text COLLATE "C" NOT NULL,
  call_id     text COLLATE "C" NOT NULL,
  run_id      text COLLATE "C" NOT NULL,  -- the child run that does the work
  tool        text NOT NULL,
  arguments   text NOT NULL,              -- as the model wrote them
  status      text NOT NULL DEFAULT 'scheduled' CHECK (status IN ('scheduled', 'completed', 'failed')),
  result      text,                       -- as the model will read it
  progress    text,
  seq         bigint,                     -- of the message that brought the result into the conversation
  created_at  timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz,
  PRIMARY KEY (agent_name, session_id, call_id)
);

CREATE INDEX session_results_open ON session_results (agent_name, session_id) WHERE seq IS NULL;
