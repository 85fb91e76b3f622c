"""The one error that a user's input can cause."""

LONGEST = 1200
"""Characters of a message; what a broken file holds may be of any length."""


class LsatError(ValueError):
    """Say what is wrong, where (file, row or key) and the remedy, in one line that a job prints as it is."""

    def __init__(self, text: str) -> None:
        """Make the text one line of at most `LONGEST` characters; what is too long is left out in the middle."""
        line = " ".join(str(text).splitlines())
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - 400]} ... {line[-390:]}")
