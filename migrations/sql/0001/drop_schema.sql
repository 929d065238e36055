-- Where the migrating role may create nothing elsewhere, Alembic's record of these revisions stays behind in the schema.
DO $$
BEGIN
  IF pg_catalog.to_regclass('message_store.messagedb_alembic_version') IS NULL THEN
    DROP SCHEMA message_store;
  END IF;
END
$$
