-- The lock prevents writes between the count and the drop.
DO $$
DECLARE
  message_count bigint;
BEGIN
  LOCK TABLE message_store.messages IN ACCESS EXCLUSIVE MODE;
  SELECT count(*) INTO message_count FROM message_store.messages;
  IF message_count > 0 THEN
    RAISE EXCEPTION 'this downgrade would delete % messages: to allow that, pass -x discard_messages=yes, or discard_messages=True in Python', message_count;
  END IF;
END
$$
