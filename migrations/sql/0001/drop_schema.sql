DROP SCHEMA message_store
