"""Entities: loading, deciding, snapshots, the cache, and tests without a database."""
