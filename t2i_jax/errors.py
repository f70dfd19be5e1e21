"""The one error a user's own mistake raises."""


class UserError(ValueError):
    """A mistake in what the user gave: one sentence with the field, its value and the remedy.

    The command line prints the sentence alone and exits with status 2; a stack trace means a bug of ours.
    """
