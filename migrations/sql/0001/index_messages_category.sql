-- Not CREATE INDEX IF NOT EXISTS: it blocks writers even if the index exists.
DO $$
BEGIN
  IF pg_catalog.to_regclass('message_store.messages_category') IS NULL THEN
    CREATE INDEX messages_category ON message_store.messages (
      message_store.category(stream_name),
      global_position,
      message_store.category(metadata->>'correlationStreamName')
    );
  END IF;
END
$$
