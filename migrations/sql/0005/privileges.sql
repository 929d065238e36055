DO $$
BEGIN
  IF pg_catalog.to_regrole('message_store') IS NOT NULL THEN
    GRANT EXECUTE ON FUNCTION message_store.get_query_messages(jsonb, bigint) TO message_store;
  END IF;
END
$$
