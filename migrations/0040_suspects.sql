-- Runs that are claimed alone: their process was lost twice, and they wrote no row in between. There are hardly any.

CREATE INDEX runs_suspect ON runs (agent_name, turn) WHERE status = 'pending' AND attempts > 1;
