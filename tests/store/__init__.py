"""The store: writing, reading, transactions, drivers, errors, messages and their types."""
