CREATE OR REPLACE FUNCTION message_store.get_last_stream_message(
  stream_name varchar,
  type varchar DEFAULT NULL
)
RETURNS SETOF message_store.message
LANGUAGE plpgsql
AS $$
BEGIN
  IF pg_catalog.current_setting('message_store.debug', true) OPERATOR(pg_catalog.=) 'on'
    OR pg_catalog.current_setting('message_store.debug_get', true) OPERATOR(pg_catalog.=) 'on'
  THEN
    RAISE NOTICE 'get_last_stream_message(stream_name => %, type => %)',
      get_last_stream_message.stream_name, get_last_stream_message.type;
  END IF;

  -- Two queries, so that each has its own plan, with and without a type.
  IF get_last_stream_message.type IS NULL THEN
    RETURN QUERY
      SELECT m.id::varchar, m.stream_name::varchar, m.type::varchar, m."position", m.global_position,
        m.data::varchar, m.metadata::varchar, m."time"
      FROM message_store.messages AS m
      WHERE m.stream_name OPERATOR(pg_catalog.=) get_last_stream_message.stream_name
      ORDER BY m."position" DESC
      LIMIT 1;
  ELSE
    RETURN QUERY
      SELECT m.id::varchar, m.stream_name::varchar, m.type::varchar, m."position", m.global_position,
        m.data::varchar, m.metadata::varchar, m."time"
      FROM message_store.messages AS m
      WHERE m.stream_name OPERATOR(pg_catalog.=) get_last_stream_message.stream_name AND m.type OPERATOR(pg_catalog.=) get_last_stream_message.type
      ORDER BY m."position" DESC
      LIMIT 1;
  END IF;
END
$$
