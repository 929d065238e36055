-- Before the table is dropped: write each position that counts to its stream, where consumers then find it. The locks of
-- the categories come first, as in a consumer that takes its position into the table.
DO $$
DECLARE
  recorded record;
BEGIN
  PERFORM message_store.acquire_lock(stream_name)
  FROM (SELECT stream_name FROM message_store.consumer_positions ORDER BY stream_name) AS streams;

  LOCK TABLE message_store.consumer_positions IN ACCESS EXCLUSIVE MODE;

  FOR recorded IN
    SELECT held.stream_name, held."position", marker."position" AS version
    FROM message_store.consumer_positions AS held
    JOIN message_store.messages AS marker ON marker.id = held.marker AND marker.stream_name = held.stream_name
    ORDER BY held.stream_name
  LOOP
    IF message_store.stream_version(recorded.stream_name) = recorded.version THEN
      PERFORM message_store.write_message(
        pg_catalog.gen_random_uuid()::varchar,
        recorded.stream_name,
        'Recorded',
        pg_catalog.jsonb_build_object('position', recorded."position")
      );
    END IF;
  END LOOP;
END
$$
