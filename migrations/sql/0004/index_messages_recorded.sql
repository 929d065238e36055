-- Finds the last position of each consumer. The hash stands for the category: both names may be so long that they do not
-- fit into an index together. Not CREATE INDEX IF NOT EXISTS: it blocks writers even if the index exists.
DO $$
BEGIN
  IF pg_catalog.to_regclass('message_store.messages_recorded') IS NULL THEN
    CREATE INDEX messages_recorded ON message_store.messages (
      message_store.hash_64(message_store.category(stream_name)),
      stream_name,
      "position"
    ) WHERE type = 'Recorded' AND message_store.category(stream_name) ~ ':(.*[+])?position$';
  END IF;
END
$$
