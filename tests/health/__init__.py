"""Health: what a consumer is doing, and whether that is well."""
