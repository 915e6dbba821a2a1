-- A payload may stand in an object store of JetStream (PERDURE_PAYLOAD_STORE=nats), under its hash: its row has no body then.
-- The row is there first, and goes together with the object, so that there is always somebody who knows of it.

ALTER TABLE payloads ALTER COLUMN body DROP NOT NULL;
ALTER TABLE payloads ADD COLUMN elsewhere boolean NOT NULL DEFAULT FALSE;  -- an object may be there, beside a body, too
