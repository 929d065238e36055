"""Metrics with OpenTelemetry: what is counted and measured, by which names."""
