-- Not CREATE INDEX IF NOT EXISTS: it blocks writers even if the index exists.
DO $$
BEGIN
  IF pg_catalog.to_regclass('message_store.messages_stream') IS NULL THEN
    CREATE UNIQUE INDEX messages_stream ON message_store.messages (stream_name, "position");
  END IF;
END
$$
