CREATE OR REPLACE FUNCTION message_store.hash_64(value varchar)
RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
  SELECT ('x' OPERATOR(pg_catalog.||) pg_catalog.left(pg_catalog.md5(hash_64.value), 16))::bit(64)::bigint
$$
