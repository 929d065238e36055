DROP FUNCTION message_store.write_messages(varchar[], varchar, varchar[], jsonb, jsonb, bigint)
