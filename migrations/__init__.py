"""The Alembic history of a Message DB store, and under sql/ what its revisions run: one statement a file."""
