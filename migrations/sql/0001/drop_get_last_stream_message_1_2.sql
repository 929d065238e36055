-- In Message DB 1.2 and older, the function has no parameter type. If both functions existed, a call with one argument
-- would be ambiguous.
DROP FUNCTION IF EXISTS message_store.get_last_stream_message(varchar)
