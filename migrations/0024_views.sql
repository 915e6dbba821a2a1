-- Views for people: readable columns over the engine's tables. The columns stay; the tables beneath may change.
--
--   run_overview   a row a run: how it is, how long it took, why it failed
--   run_steps      a row a journaled outcome of a run, retries included
--   run_signals    a row a signal, and whether the run has taken it

CREATE VIEW run_overview AS
SELECT run_id, agent_name AS agent, workflow, NULLIF(version, '') AS version, status, session_id,
       parent_run_id, origin_run_id, origin_kind, queue_name AS queue,
       CASE WHEN status = 'waiting' THEN concat_ws(', ',
         CASE WHEN wake_at IS NOT NULL THEN 'until ' || to_char(wake_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') END,
         CASE WHEN waiting_signals IS NOT NULL THEN 'signal ' || array_to_string(waiting_signals, ', signal ') END,
         CASE WHEN waiting_children IS NOT NULL THEN 'run ' || array_to_string(waiting_children, ', run ') END)
       END AS waits_for,
       CASE WHEN status = 'running' THEN process_id END AS process,
       attempts AS claims_without_a_step, config_revision, error ->> 'type' AS error_type,
       error ->> 'message' AS error_message, created_at, started_at, finished_at,
       round(extract(epoch FROM started_at - created_at)::numeric, 3) AS seconds_until_start,
       round(extract(epoch FROM COALESCE(finished_at, now()) - started_at)::numeric, 3) AS seconds
FROM runs;

CREATE VIEW run_steps AS
SELECT j.run_id, r.agent_name AS agent, r.workflow, j.seq, j.path, j.kind, j.name,
       CASE WHEN j.kind = 'retry' THEN 'retrying' ELSE
         CASE j.outcome WHEN 'ok' THEN 'completed' WHEN 'error' THEN 'failed' WHEN 'timeout' THEN 'timed_out'
                        ELSE 'waiting' END END AS status,
       j.attempt, j.due_at, j.epoch, j.config_revision, j.error ->> 'type' AS error_type,
       j.error ->> 'message' AS error_message, j.result,
       CASE WHEN j.result ->> 'input_tokens' ~ '^\d{1,15}$' THEN (j.result ->> 'input_tokens')::bigint END AS input_tokens,
       CASE WHEN j.result ->> 'output_tokens' ~ '^\d{1,15}$' THEN (j.result ->> 'output_tokens')::bigint END AS output_tokens,
       j.started_at, j.finished_at,
       round(extract(epoch FROM j.finished_at - j.started_at)::numeric, 3) AS seconds
FROM journal AS j JOIN runs AS r USING (run_id);

CREATE VIEW run_signals AS
SELECT s.run_id, r.agent_name AS agent, r.status AS run_status, s.seq, s.name, s.consumed AS taken, s.payload,
       s.created_at AS sent_at
FROM signals AS s JOIN runs AS r USING (run_id);
