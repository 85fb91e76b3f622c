"""Frozen language models, and the nano one."""
