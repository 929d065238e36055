-- CREATE INDEX IF NOT EXISTS would keep every writer waiting, whether it makes the index or not.
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
