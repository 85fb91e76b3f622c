"""The one error that a user's input can cause."""


class LsatError(ValueError):
    """Say what is wrong, where (file, row or key) and the remedy, in one line that a job prints as it is."""
