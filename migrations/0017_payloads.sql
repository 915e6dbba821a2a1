-- Values that are too large for a row of their own: tasks, results, outputs, signals.
--
--   payloads      one row a value, by the hash of its bytes: the same value is kept once
--   payload_uses  which runs refer to it; a payload that no run uses goes after an hour
--
-- Ways through: a value over the bound is put here, with its use, before or in the commit of the row that refers to it
--   -> read with that row -> the run goes, then its uses, then what nobody uses. Parts of a request on their way in
--   are payloads without a use.

CREATE TABLE payloads (
  hash    text COLLATE "C" PRIMARY KEY,
  size    bigint NOT NULL,                     -- bytes of `body`
  body    bytea NOT NULL,
  used_at timestamptz NOT NULL DEFAULT now()   -- when somebody last put it: nobody deletes what is being put
);

CREATE TABLE payload_uses (
  run_id  text COLLATE "C" NOT NULL,
  hash    text COLLATE "C" NOT NULL,
  used_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (run_id, hash)
);
CREATE INDEX payload_uses_of ON payload_uses (hash);
