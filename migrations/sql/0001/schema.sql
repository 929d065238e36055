-- CREATE SCHEMA IF NOT EXISTS asks for CREATE on the database even where the schema was made beforehand.
DO $$
BEGIN
  IF pg_catalog.to_regnamespace('message_store') IS NULL THEN
    CREATE SCHEMA message_store;
  END IF;
END
$$
