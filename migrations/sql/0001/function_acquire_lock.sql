CREATE OR REPLACE FUNCTION message_store.acquire_lock(stream_name varchar)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
  lock_key bigint := message_store.hash_64(message_store.category(acquire_lock.stream_name));
BEGIN
  PERFORM pg_catalog.pg_advisory_xact_lock(lock_key);
  RETURN lock_key;
END
$$
