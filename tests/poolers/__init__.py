"""The store behind PgBouncer in transaction mode, the real one."""
