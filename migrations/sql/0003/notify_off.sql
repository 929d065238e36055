-- Check first: DROP TRIGGER IF EXISTS blocks writers and readers even if there is no trigger.
DO $$
BEGIN
  IF EXISTS (
    SELECT FROM pg_catalog.pg_trigger
    WHERE tgrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('message_store.messages')
      AND tgname OPERATOR(pg_catalog.=) 'messages_notify'
  ) THEN
    DROP TRIGGER messages_notify ON message_store.messages;
  END IF;
END
$$
