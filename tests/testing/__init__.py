"""The throwaway PostgreSQL servers and the pytest plugin."""
