CREATE OR REPLACE VIEW message_store.stream_summary AS
  SELECT
    stream_name,
    count(*) AS message_count,
    round(count(*) * 100 / sum(count(*)) OVER (), 2) AS percent
  FROM message_store.messages
  GROUP BY 1
  ORDER BY 1
