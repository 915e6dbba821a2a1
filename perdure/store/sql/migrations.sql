-- What the migrations runner asks. The key is "perdure" as a number: any two migrators of one database share it.

-- name: lock
SELECT pg_advisory_lock(31643084826)

-- name: unlock
SELECT pg_advisory_unlock(31643084826)

-- name: create_table
CREATE TABLE IF NOT EXISTS schema_migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)

-- name: table_exists
SELECT to_regclass('schema_migrations') IS NOT NULL

-- name: applied
SELECT version, name, checksum
FROM schema_migrations
ORDER BY version

-- name: record
INSERT INTO schema_migrations (version, name, checksum)
VALUES ($1, $2, $3)

-- name: make_database
-- The statement that makes a database: names of databases cannot be parameters.
SELECT format('CREATE DATABASE %I', $1::text)
