-- Gradual rollouts: a change first lives in the layers of a few instances (agent@instance), bakes there, and then moves
-- to the agent's own layer, or goes. Each step is one transaction with the rows it writes, so a kill stops it nowhere.

CREATE TABLE config_rollouts (
    rollout_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    agent_name text NOT NULL,
    changes json NOT NULL,             -- {key: value as text}
    targets text[] NOT NULL,           -- instances that try the change
    previous json NOT NULL,            -- {instance: {key: its row's value before, or null}}
    revision bigint NOT NULL,          -- the one that brought the change to the targets
    max_failures integer NOT NULL,     -- failed runs on the targets that are still no reason to go back
    state text NOT NULL DEFAULT 'baking' CHECK (state IN ('baking', 'done', 'rolled_back', 'aborted')),
    reason text,
    started_by text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    bake_until timestamptz NOT NULL,
    finished_at timestamptz
);
CREATE UNIQUE INDEX config_rollouts_one_at_a_time ON config_rollouts (agent_name) WHERE state = 'baking';
