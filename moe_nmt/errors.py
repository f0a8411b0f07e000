"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """A mistake in what the user gave us.

    The message is one sentence that names the culprit, what is allowed and the way out. The commands print it without
    a traceback and exit with status 2.
    """
