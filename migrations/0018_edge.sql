-- What the HTTP door looks for: the runs of a conversation in their order, and the agents that have one of an id.

CREATE INDEX runs_of_session ON runs (session_id, turn) WHERE session_id IS NOT NULL;
CREATE INDEX sessions_by_id ON sessions (session_id);

-- A tenant's ids begin with its name and two underscores; its runs, the newest first.
CREATE INDEX runs_of_tenant ON runs ((split_part(run_id, '__', 1)), turn DESC) WHERE strpos(run_id, '__') > 0;

-- The keys of the gateway. A key is shown once; what stands here is its HMAC under a secret that is not in the database,
-- so that whoever can write rows can still make no key.
CREATE TABLE gateway_keys (
  key_id       text COLLATE "C" PRIMARY KEY,
  name         text NOT NULL,
  hash         bytea NOT NULL,
  role         text NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
  tenant       text NOT NULL DEFAULT 'default',
  agents       text[],                    -- NULL: all
  rate_limit   integer,                   -- requests a minute; NULL: the gateway's own
  created_at   timestamptz NOT NULL DEFAULT now(),
  expires_at   timestamptz,
  last_used_at timestamptz,               -- to the minute
  revoked_at   timestamptz
);
