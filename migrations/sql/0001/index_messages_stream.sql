-- CREATE INDEX IF NOT EXISTS would keep every writer waiting, whether it makes the index or not.
DO $$
BEGIN
  IF pg_catalog.to_regclass('message_store.messages_stream') IS NULL THEN
    CREATE UNIQUE INDEX messages_stream ON message_store.messages (stream_name, "position");
  END IF;
END
$$
