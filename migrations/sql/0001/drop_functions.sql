DROP FUNCTION
  message_store.get_last_stream_message(varchar, varchar),
  message_store.get_category_messages(varchar, bigint, bigint, varchar, bigint, bigint, varchar),
  message_store.get_stream_messages(varchar, bigint, bigint, varchar),
  message_store.write_message(varchar, varchar, varchar, jsonb, jsonb, bigint),
  message_store.message_store_version(),
  message_store.stream_version(varchar),
  message_store.acquire_lock(varchar),
  message_store.hash_64(varchar),
  message_store.is_category(varchar),
  message_store.cardinal_id(varchar),
  message_store.id(varchar),
  message_store.category(varchar)
