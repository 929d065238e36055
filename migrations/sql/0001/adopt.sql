-- What is here already must be a Message DB that this revision can take over: 1.1 to 1.3 differ in functions only.
DO $$
DECLARE
  installed pg_catalog.text;
BEGIN
  IF pg_catalog.to_regprocedure('message_store.message_store_version()') IS NOT NULL THEN
    installed := message_store.message_store_version();
    IF installed OPERATOR(pg_catalog.!~) '^1\.[123](\.|$)' THEN
      RAISE EXCEPTION 'Message DB % is in this database; only 1.1, 1.2 and 1.3 can be taken over', installed;
    END IF;
  ELSIF pg_catalog.to_regclass('message_store.messages') IS NOT NULL
    OR pg_catalog.to_regtype('message_store.message') IS NOT NULL
  THEN
    RAISE EXCEPTION 'the schema message_store is in use, but has no message_store_version(): this is no Message DB';
  END IF;
END
$$
