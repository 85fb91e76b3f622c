"""Specs, training, scoring, merges and the store of LoRA adapters."""
