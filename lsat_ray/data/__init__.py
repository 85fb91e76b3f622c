"""Logs, readers, windows, periods and the synthetic stream."""
