"""Prompts, answer tokens, layouts and encoded batches."""
