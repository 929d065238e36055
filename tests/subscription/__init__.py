"""Subscriptions: iterating over messages as they are written."""
