"""Tracing with OpenTelemetry: spans, and the context that messages carry."""
