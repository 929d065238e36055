DROP FUNCTION message_store.get_query_messages(jsonb, bigint)
