"""The front door: the command line, and the same calls for a notebook."""
