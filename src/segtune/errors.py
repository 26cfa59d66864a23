"""What segtune raises when the fault lies in the input: one message that names the file, the value and the fix."""

from __future__ import annotations


class SegtuneError(Exception):
    """Base of all errors that the command line shows as one message, without a traceback."""

    exit_code = 1


class UsageError(SegtuneError, ValueError):
    """The command, the recipe or an argument is wrong; nothing was started."""

    exit_code = 2


class DataError(SegtuneError, ValueError):
    """An image, a mask or a checkpoint is not what it should be."""
