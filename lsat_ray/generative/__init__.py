"""Generative recommendation with semantic IDs: the next item as four codes, found by beam search in a trie."""
