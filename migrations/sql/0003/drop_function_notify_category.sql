DROP FUNCTION message_store.notify_category()
