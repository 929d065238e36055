CREATE OR REPLACE FUNCTION message_store.stream_version(stream_name varchar)
RETURNS bigint
LANGUAGE plpgsql
AS $$
BEGIN
  RETURN (
    SELECT pg_catalog.max(m."position")
    FROM message_store.messages AS m
    WHERE m.stream_name OPERATOR(pg_catalog.=) stream_version.stream_name
  );
END
$$
