DROP TABLE message_store.messages
