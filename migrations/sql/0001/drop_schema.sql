-- Keep the schema if Alembic's version table is in it. The table is there if the migrating role may not create tables in
-- another schema.
DO $$
BEGIN
  IF pg_catalog.to_regclass('message_store.messagedb_alembic_version') IS NULL THEN
    DROP SCHEMA message_store;
  END IF;
END
$$
