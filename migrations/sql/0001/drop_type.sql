DROP TYPE message_store.message
