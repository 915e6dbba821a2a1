-- What agents remember across conversations. Made on first use: it needs pgvector, which a Postgres may not have.

-- name: available
SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector')

-- name: ready
SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('memories') AND attname = 'scope')

-- name: lock
SELECT pg_advisory_xact_lock(1346719301)

-- name: create_extension
CREATE EXTENSION IF NOT EXISTS vector

-- name: create_table
CREATE TABLE IF NOT EXISTS memories (
  agent_name text COLLATE "C" NOT NULL,
  memory_id  text COLLATE "C" NOT NULL,   -- the idempotency key of the call that kept it: once, however often it runs
  run_id     text COLLATE "C" NOT NULL,
  content    text NOT NULL,
  embedding  vector NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  scope      text COLLATE "C" NOT NULL DEFAULT '',  -- whose: `user:…`, `session:…`, or empty for the whole agent
  PRIMARY KEY (agent_name, memory_id)
);
ALTER TABLE memories ADD COLUMN IF NOT EXISTS scope text COLLATE "C" NOT NULL DEFAULT '';
CREATE INDEX IF NOT EXISTS memories_scope ON memories (agent_name, scope)

-- name: keep
INSERT INTO memories (agent_name, memory_id, run_id, content, embedding, scope)
VALUES ($1, $2, $3, $4, $5::text::vector, $6)
ON CONFLICT DO NOTHING

-- name: recall
-- The nearest by cosine distance, of the same number of dimensions: another model's vectors say nothing here.
SELECT content, 1 - (embedding <=> $2::text::vector) AS nearness
FROM memories
WHERE agent_name = $1 AND scope = $4 AND vector_dims(embedding) = vector_dims($2::text::vector)
ORDER BY embedding <=> $2::text::vector, memory_id
LIMIT $3

-- name: forget
DELETE FROM memories WHERE agent_name = $1 AND ($2::text IS NULL OR run_id = $2) AND ($3::text IS NULL OR scope = $3)
