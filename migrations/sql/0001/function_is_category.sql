CREATE OR REPLACE FUNCTION message_store.is_category(stream_name varchar)
RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
  SELECT COALESCE(pg_catalog.strpos(is_category.stream_name, '-') OPERATOR(pg_catalog.=) 0, true)
$$
