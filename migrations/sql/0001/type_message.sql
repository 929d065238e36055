-- PostgreSQL has no CREATE TYPE IF NOT EXISTS. If the type were dropped first, the functions would be dropped with it.
DO $$
BEGIN
  IF pg_catalog.to_regtype('message_store.message') IS NULL THEN
    CREATE TYPE message_store.message AS (
      id varchar,
      stream_name varchar,
      type varchar,
      "position" bigint,
      global_position bigint,
      data varchar,
      metadata varchar,
      "time" timestamp without time zone
    );
  END IF;
END
$$
