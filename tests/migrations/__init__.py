"""Installing, upgrading and removing a store, with Alembic and without."""
