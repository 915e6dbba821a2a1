-- What conversations cost, their summaries, and the decisions of people about tool calls.
--
--   sessions     what a conversation has cost, and the summary of its messages up to `summary_upto`
--   approvals    one row a tool call that waits, or waited, for a person: who decided what about which arguments, and when
--   tool_starts  calls of tools that must not be repeated: such a call whose outcome is lost is not made again

ALTER TABLE sessions
  ADD COLUMN input_tokens  bigint NOT NULL DEFAULT 0,
  ADD COLUMN output_tokens bigint NOT NULL DEFAULT 0,
  ADD COLUMN cost          double precision NOT NULL DEFAULT 0,
  ADD COLUMN summary       text,
  ADD COLUMN summary_upto  bigint NOT NULL DEFAULT 0;

CREATE TABLE approvals (
  run_id         text COLLATE "C" NOT NULL,
  call_id        text COLLATE "C" NOT NULL,
  agent_name     text COLLATE "C" NOT NULL,
  session_id     text COLLATE "C" NOT NULL,
  tool           text NOT NULL,
  arguments      json NOT NULL,
  arguments_hash text NOT NULL,          -- a decision names it: nobody approves what he has not seen
  reason_asked   text,                   -- why the call waits, as a hook said
  status         text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'approved', 'denied', 'edited', 'expired')),
  edited         json,                   -- the arguments that a person put in their place
  reason         text,
  decided_by     text,
  requested_at   timestamptz NOT NULL DEFAULT now(),
  expires_at     timestamptz,
  decided_at     timestamptz,
  PRIMARY KEY (run_id, call_id)
);
CREATE INDEX approvals_pending ON approvals (requested_at) WHERE status = 'pending';

CREATE TABLE tool_starts (
  run_id     text COLLATE "C" NOT NULL,
  call_id    text COLLATE "C" NOT NULL,
  started_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (run_id, call_id)
);
