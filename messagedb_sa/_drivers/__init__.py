"""What the drivers psycopg2, psycopg and asyncpg do differently, and PostgreSQL's catalog."""
