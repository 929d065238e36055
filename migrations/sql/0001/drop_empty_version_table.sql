-- Before a script: Alembic creates the table again in a script that begins at base, since it cannot look whether a downgrade
-- has left one behind.
DO $$
BEGIN
  IF pg_catalog.to_regclass('messagedb_alembic_version') IS NOT NULL THEN
    IF NOT EXISTS (SELECT FROM messagedb_alembic_version) THEN
      DROP TABLE messagedb_alembic_version;
    END IF;
  END IF;
END
$$
