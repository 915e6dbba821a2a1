-- What `perdure doctor` asks. Nothing here changes anything.

-- name: server
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::integer AS number,
       current_setting('max_connections')::integer AS max_connections,
       current_setting('superuser_reserved_connections')::integer AS reserved,
       current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
       current_setting('autovacuum') AS autovacuum,
       pg_is_in_recovery() AS standby, current_user AS who, extract(epoch FROM clock_timestamp())::float8 AS now;

-- name: sessions
-- Of other users a role without pg_read_all_stats sees that they are there, and not what they do.
SELECT count(*) AS used,
       count(*) FILTER (WHERE datname = current_database()
         AND xact_start < now() - interval '1 hour' AND backend_type = 'client backend') AS old
FROM pg_stat_activity
WHERE backend_type = 'client backend';

-- name: broadcasters
-- The lock of block `try_lead` in config.sql.
SELECT count(*) FROM pg_locks
WHERE locktype = 'advisory' AND granted AND classid = 70726475 AND objid = 1
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database());

-- name: behind
SELECT counter.revision - broadcast.revision AS revisions,
       extract(epoch FROM now() - broadcast.recorded_at)::float8 AS seconds
FROM config_broadcast AS broadcast CROSS JOIN config_counter AS counter;

-- name: stopped
-- What only a person brings on, by the partial index of runs that have not ended.
SELECT status, count(*) AS runs, min(run_id) AS run_id FROM runs
WHERE status IN ('blocked', 'needs_review', 'dead') GROUP BY status ORDER BY status;

-- name: waiting
-- Runs that are to be claimed and nobody claims.
SELECT agent_name, count(*) AS runs FROM runs
WHERE status = 'pending' AND created_at < now() - make_interval(secs => $1) GROUP BY agent_name ORDER BY agent_name;

-- name: references
SELECT agent_name, config_key, config_value FROM agent_configurations
WHERE is_active AND config_value LIKE 'secret://%' ORDER BY agent_name, config_key LIMIT 1000;

-- name: sealed
-- Some of what is sealed, the newest.
SELECT run_id, task FROM (SELECT run_id, task FROM runs ORDER BY turn DESC LIMIT 200) AS newest
WHERE left(task::text, 20) = '{"$perdure":"sealed"';
