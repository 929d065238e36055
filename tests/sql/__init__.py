"""What the migrations install in PostgreSQL, and the SQL expressions that use it."""
