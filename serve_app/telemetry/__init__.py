"""Metrics, drift, tracing and logs of a replica."""
