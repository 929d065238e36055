-- Message DB 1.2 and older have it without a type; beside the new one a call with one argument would be ambiguous.
DROP FUNCTION IF EXISTS message_store.get_last_stream_message(varchar)
