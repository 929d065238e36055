-- The lock and the version are taken in separate statements. Under READ COMMITTED, the version is then read with a
-- snapshot that is newer than the lock.
CREATE OR REPLACE FUNCTION message_store.write_message(
  id varchar,
  stream_name varchar,
  type varchar,
  data jsonb,
  metadata jsonb DEFAULT NULL,
  expected_version bigint DEFAULT NULL
)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
  current_version bigint;
  next_position bigint;
  message_id pg_catalog.uuid;
BEGIN
  PERFORM message_store.acquire_lock(write_message.stream_name);

  current_version := COALESCE(message_store.stream_version(write_message.stream_name), -1);

  IF write_message.expected_version OPERATOR(pg_catalog.<>) current_version THEN
    RAISE EXCEPTION 'Wrong expected version: % (Stream: %, Stream Version: %)',
      write_message.expected_version, write_message.stream_name, current_version;
  END IF;

  next_position := current_version OPERATOR(pg_catalog.+) 1;
  -- Cast the id before the INSERT: an INSERT takes a global position from the sequence even if it fails.
  message_id := write_message.id::pg_catalog.uuid;

  INSERT INTO message_store.messages (id, stream_name, "position", type, data, metadata)
  VALUES (
    message_id,
    write_message.stream_name,
    next_position,
    write_message.type,
    write_message.data,
    write_message.metadata
  );

  IF pg_catalog.current_setting('message_store.debug', true) OPERATOR(pg_catalog.=) 'on'
    OR pg_catalog.current_setting('message_store.debug_write', true) OPERATOR(pg_catalog.=) 'on'
  THEN
    RAISE NOTICE 'write_message(id => %, stream_name => %, type => %, data => %, metadata => %, expected_version => %): position %',
      write_message.id, write_message.stream_name, write_message.type, write_message.data, write_message.metadata,
      write_message.expected_version, next_position;
  END IF;

  RETURN next_position;
END
$$
