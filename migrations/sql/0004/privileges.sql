DO $$
BEGIN
  IF pg_catalog.to_regrole('message_store') IS NOT NULL THEN
    GRANT SELECT, INSERT, UPDATE ON message_store.consumer_positions TO message_store;
  END IF;
END
$$
