"""What an adapter is: its spec, its weights, their merges and the store."""
