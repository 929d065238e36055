CREATE UNIQUE INDEX IF NOT EXISTS messages_id ON message_store.messages (id)
