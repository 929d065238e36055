-- "marker" is the id of the message in the stream that says that the position is in this table. The row counts as long as
-- that is the stream's last message. A row is updated each time that its consumer records: the free space lets PostgreSQL
-- do that within the row's page, without writing to the index.
CREATE TABLE IF NOT EXISTS message_store.consumer_positions (
  stream_name text PRIMARY KEY,
  "position" bigint NOT NULL,
  version bigint NOT NULL,
  marker uuid NOT NULL,
  recorded_after bigint NOT NULL,
  "time" timestamp without time zone NOT NULL
) WITH (fillfactor = 50)
