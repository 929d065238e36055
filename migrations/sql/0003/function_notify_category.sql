-- Notifies of a message whose category somebody awaits: a session that waits for messages of a category, or of all ('$all'),
-- holds a shared advisory lock for that. PostgreSQL commits transactions that notify one after another, so nobody else
-- should. The lock is tried and released in one expression: no writer keeps it, or waits for it.
--
-- At the commit, PostgreSQL sends equal notifications of a transaction only once. A notification that PostgreSQL refuses
-- would make the write fail, so none is sent if the payload has 8000 bytes or more, or if the queue is half full. The
-- queue fills if a listening session stays in one transaction.
CREATE OR REPLACE FUNCTION message_store.notify_category()
RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
  -- Of two-part advisory locks, those of Message DB's waiting sessions.
  of_awaited CONSTANT pg_catalog.int4 := 1297302595;
  category pg_catalog.varchar := message_store.category(NEW.stream_name);
BEGIN
  IF NOT (
    CASE
      WHEN pg_catalog.pg_try_advisory_lock(of_awaited, pg_catalog.hashtext(category))
      THEN pg_catalog.pg_advisory_unlock(of_awaited, pg_catalog.hashtext(category))
      ELSE false
    END
    AND CASE
      WHEN pg_catalog.pg_try_advisory_lock(of_awaited, pg_catalog.hashtext('$all'))
      THEN pg_catalog.pg_advisory_unlock(of_awaited, pg_catalog.hashtext('$all'))
      ELSE false
    END
  )
  THEN
    IF pg_catalog.octet_length(category) OPERATOR(pg_catalog.<) 8000
      AND pg_catalog.pg_notification_queue_usage() OPERATOR(pg_catalog.<) 0.5
    THEN
      PERFORM pg_catalog.pg_notify('message_store', category);
    END IF;
  END IF;
  RETURN NULL;
END
$$
