"""Errors whose message is all that the user needs: the commands print it without a traceback."""


class UserError(ValueError):
    """Something that was asked for cannot work. Names the value and what would work. Exit code 2."""


class RunFailedError(RuntimeError):
    """A run that began well cannot go on. Names what happened and what is on disk. Exit code 1."""


class ProcessFailedError(RunFailedError):
    """One process cannot go on, and the others do not know it yet: it says so itself, and the launcher ends them."""
