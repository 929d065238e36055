"""The replacement for message-db-py's client."""
