-- What begins runs by itself.

-- name: bury
INSERT INTO dead_letters (agent_name, workflow, subject, message_id, headers, data, reason)
VALUES ($1, $2, $3, $4, $5::json, $6, $7)
ON CONFLICT DO NOTHING
