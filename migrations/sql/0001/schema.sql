-- Not CREATE SCHEMA IF NOT EXISTS: it needs the privilege CREATE on the database even if the schema exists.
DO $$
BEGIN
  IF pg_catalog.to_regnamespace('message_store') IS NULL THEN
    CREATE SCHEMA message_store;
  END IF;
END
$$
