-- The W3C traceparent of whoever started a run: its spans hang below it, in whichever process it goes on.
ALTER TABLE runs ADD COLUMN trace text;
