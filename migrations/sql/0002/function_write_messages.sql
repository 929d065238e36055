-- Does the same as write_message for each message, but with one lock, one read of the version and one INSERT. The lock
-- and the version are taken in separate statements: under READ COMMITTED, the version is then read with a snapshot that
-- is newer than the lock. Data and metadata are JSON arrays, since one document is parsed faster than many. A null in
-- them is stored as NULL.
CREATE OR REPLACE FUNCTION message_store.write_messages(
  ids varchar[],
  stream_name varchar,
  types varchar[],
  data jsonb,
  metadata jsonb DEFAULT NULL,
  expected_version bigint DEFAULT NULL
)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
  current_version bigint;
  number_of_messages integer := pg_catalog.cardinality(write_messages.ids);
  number_of_data integer := CASE pg_catalog.jsonb_typeof(write_messages.data)
    WHEN 'array' THEN pg_catalog.jsonb_array_length(write_messages.data)
  END;
  number_of_metadata integer := CASE pg_catalog.jsonb_typeof(write_messages.metadata)
    WHEN 'array' THEN pg_catalog.jsonb_array_length(write_messages.metadata)
  END;
  message_ids pg_catalog.uuid[];
BEGIN
  IF number_of_messages OPERATOR(pg_catalog.=) 0
    OR number_of_messages IS DISTINCT FROM pg_catalog.cardinality(write_messages.types)
    OR number_of_messages IS DISTINCT FROM number_of_data
    OR write_messages.metadata IS NOT NULL AND number_of_messages IS DISTINCT FROM number_of_metadata
  THEN
    RAISE EXCEPTION 'Ids, types, data and metadata must be arrays of the same length, at least 1 (Stream: %, Ids: %, Types: %, Data: %, Metadata: %)',
      write_messages.stream_name, number_of_messages, pg_catalog.cardinality(write_messages.types), number_of_data,
      number_of_metadata;
  END IF;

  PERFORM message_store.acquire_lock(write_messages.stream_name);

  current_version := COALESCE(message_store.stream_version(write_messages.stream_name), -1);

  IF write_messages.expected_version OPERATOR(pg_catalog.<>) current_version THEN
    RAISE EXCEPTION 'Wrong expected version: % (Stream: %, Stream Version: %)',
      write_messages.expected_version, write_messages.stream_name, current_version;
  END IF;

  -- Cast the ids before the INSERT: an INSERT takes global positions from the sequence even if it fails.
  message_ids := write_messages.ids::pg_catalog.uuid[];

  -- The rows are in the order of the arrays: PostgreSQL advances all set-returning functions of a SELECT together.
  INSERT INTO message_store.messages (id, stream_name, "position", type, data, metadata)
  SELECT
    new.id,
    write_messages.stream_name,
    current_version OPERATOR(pg_catalog.+) new.number,
    new.type,
    CASE WHEN new.data OPERATOR(pg_catalog.<>) 'null' THEN new.data END,
    CASE WHEN new.metadata OPERATOR(pg_catalog.<>) 'null' THEN new.metadata END
  FROM (
    SELECT
      pg_catalog.unnest(message_ids) AS id,
      pg_catalog.unnest(write_messages.types) AS type,
      write_messages.data OPERATOR(pg_catalog.->) pg_catalog.generate_series(0, number_of_messages OPERATOR(pg_catalog.-) 1) AS data,
      write_messages.metadata OPERATOR(pg_catalog.->) pg_catalog.generate_series(0, number_of_messages OPERATOR(pg_catalog.-) 1) AS metadata,
      pg_catalog.generate_series(1, number_of_messages) AS number
  ) AS new;

  IF pg_catalog.current_setting('message_store.debug', true) OPERATOR(pg_catalog.=) 'on'
    OR pg_catalog.current_setting('message_store.debug_write', true) OPERATOR(pg_catalog.=) 'on'
  THEN
    RAISE NOTICE 'write_messages(ids => %, stream_name => %, types => %, data => %, metadata => %, expected_version => %): last position %',
      write_messages.ids, write_messages.stream_name, write_messages.types, write_messages.data, write_messages.metadata,
      write_messages.expected_version, current_version OPERATOR(pg_catalog.+) number_of_messages;
  END IF;

  RETURN current_version OPERATOR(pg_catalog.+) number_of_messages;
END
$$
