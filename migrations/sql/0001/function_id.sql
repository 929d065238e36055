CREATE OR REPLACE FUNCTION message_store.id(stream_name varchar)
RETURNS varchar
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
  SELECT CASE
    WHEN pg_catalog.strpos(id.stream_name, '-') OPERATOR(pg_catalog.>) 0
    THEN pg_catalog.substr(id.stream_name, pg_catalog.strpos(id.stream_name, '-') OPERATOR(pg_catalog.+) 1)::varchar
  END
$$
