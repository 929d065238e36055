"""The Alembic revisions of a Message DB store. The files in sql/ hold the SQL that they run, one statement a file."""
