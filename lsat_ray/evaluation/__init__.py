"""Metrics, significance and audits."""
