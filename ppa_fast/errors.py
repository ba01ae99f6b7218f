"""The one exception that means "your input, not our code"."""


class UserError(ValueError):
    """Bad input: a file, an argument or a setting that cannot be used as given.

    The message is one sentence (or a few lines) that names the file, line or argument, says what was found and what was
    expected. The command line prints it without a traceback and exits with status 2.
    """
