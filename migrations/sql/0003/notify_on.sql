-- Check first: CREATE TRIGGER and ENABLE TRIGGER block writers until the transaction ends.
DO $$
DECLARE
  enabled pg_catalog."char" := (
    SELECT tgenabled FROM pg_catalog.pg_trigger
    WHERE tgrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('message_store.messages')
      AND tgname OPERATOR(pg_catalog.=) 'messages_notify'
  );
BEGIN
  IF pg_catalog.to_regprocedure('message_store.notify_category()') IS NULL THEN
    RAISE EXCEPTION 'notifications need the revision messagedb_0003: upgrade the store to it first';
  ELSIF enabled IS NULL THEN
    CREATE TRIGGER messages_notify AFTER INSERT ON message_store.messages
      FOR EACH ROW EXECUTE FUNCTION message_store.notify_category();
  ELSIF enabled OPERATOR(pg_catalog.<>) ALL ('{O,A}'::pg_catalog."char"[]) THEN
    ALTER TABLE message_store.messages ENABLE TRIGGER messages_notify;
  END IF;
END
$$
