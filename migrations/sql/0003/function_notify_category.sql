-- Tells whoever listens that a message was written. PostgreSQL sends a transaction's equal notifications once, at its
-- commit. Nothing that PostgreSQL would refuse is sent, since that would refuse the write: a payload of 8000 bytes, and
-- anything once the queue is full, which a session that listens and stays in one transaction holds up.
CREATE OR REPLACE FUNCTION message_store.notify_category()
RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
  category pg_catalog.varchar := message_store.category(NEW.stream_name);
BEGIN
  IF pg_catalog.octet_length(category) OPERATOR(pg_catalog.<) 8000
    AND pg_catalog.pg_notification_queue_usage() OPERATOR(pg_catalog.<) 0.5
  THEN
    PERFORM pg_catalog.pg_notify('message_store', category);
  END IF;
  RETURN NULL;
END
$$
