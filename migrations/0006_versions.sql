-- Versions of workflows.
--
--   processes.workflows, .versions  what a process offers: pairs, '' for a workflow without a version
--   runs.version                    taken at the first claim of a life and kept: '' for none, NULL for not claimed yet
--   runs.source_hash                of the workflow's code at that claim; shown, never compared

ALTER TABLE processes
  ADD COLUMN workflows text[] NOT NULL DEFAULT '{}',
  ADD COLUMN versions  text[] NOT NULL DEFAULT '{}';
CREATE INDEX processes_agents ON processes (agent_name) WHERE state = 'live';

ALTER TABLE runs ADD COLUMN source_hash text;
