-- The lock keeps a message from being written between the count and the drop.
DO $$
DECLARE
  message_count bigint;
BEGIN
  LOCK TABLE message_store.messages IN ACCESS EXCLUSIVE MODE;
  SELECT count(*) INTO message_count FROM message_store.messages;
  IF message_count > 0 THEN
    RAISE EXCEPTION 'the store holds % messages, which this downgrade would drop; to lose them, say discard_messages=yes', message_count;
  END IF;
END
$$
