-- Refuse a schema that is not a Message DB of version 1.1 to 1.3. These versions differ only in their functions, so this
-- revision can upgrade them.
DO $$
DECLARE
  installed pg_catalog.text;
BEGIN
  IF pg_catalog.to_regprocedure('message_store.message_store_version()') IS NOT NULL THEN
    installed := message_store.message_store_version();
    IF installed OPERATOR(pg_catalog.!~) '^1\.[123](\.|$)' THEN
      RAISE EXCEPTION 'this database has Message DB %, but only versions 1.1, 1.2 and 1.3 can be upgraded', installed;
    END IF;
  ELSIF pg_catalog.to_regclass('message_store.messages') IS NOT NULL
    OR pg_catalog.to_regtype('message_store.message') IS NOT NULL
  THEN
    RAISE EXCEPTION 'the schema message_store is not a Message DB, since it has no message_store_version(): rename the schema, or use another database';
  END IF;
END
$$
