"""The tests: on the installed package, and on a real PostgreSQL."""
