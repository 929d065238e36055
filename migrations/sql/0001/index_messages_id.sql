-- Not CREATE INDEX IF NOT EXISTS: it blocks writers even if the index exists.
DO $$
BEGIN
  IF pg_catalog.to_regclass('message_store.messages_id') IS NULL THEN
    CREATE UNIQUE INDEX messages_id ON message_store.messages (id);
  END IF;
END
$$
