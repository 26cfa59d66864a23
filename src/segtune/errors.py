"""Exceptions raised when the fault lies in the input: one message that names the file, the value and the fix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_CONTROLS = {*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")}
TURNING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # of the direction of text; marks of one letter stay
_STEERING = {code: ascii(chr(code))[1:-1] for code in _CONTROLS | TURNING}
_OUT_OF_MEMORY = (  # what PyTorch and the libraries below it say where the system refuses memory
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "defaultcpuallocator",
    "bad_alloc",
    "could not create a memory",
    "could not create a primitive",
    "memoryerror",  # in what a process has printed
)


class SegtuneError(Exception):
    """Base of all errors that the command line shows as one message, without a traceback."""

    exit_code = 1


class UsageError(SegtuneError, ValueError):
    """The command, the recipe or an argument is wrong; nothing was started."""

    exit_code = 2


class DataError(SegtuneError, ValueError):
    """An image, a mask or a checkpoint is not what it should be."""

    def named(self, what: str) -> DataError:
        """The same error with what it is about in front: a file, a sample."""
        return DataError(f"{what}: {self}")


class FullDiskError(SegtuneError, OSError):
    """A file or folder cannot be written, since its disk is full."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Puts what is read, a file or a sample, in front of the message of a `DataError`, unless it begins so."""
    try:
        yield
    except DataError as error:
        if str(error).startswith(what):
            raise
        raise error.named(what) from error


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what led to it, the first cause last."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory does not suffice, on whichever device: Python's, torch's, or a library's.

    oneDNN's "could not create a primitive" is counted among them, though it says the same of a shape that it cannot do.
    """
    # torch's class is known by its name, since torch is not loaded here
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(words in told for words in _OUT_OF_MEMORY)


def listed(names: Sequence[object], limit: int = 5, separator: str = ", ") -> str:
    """The first of many names for a message, and how many more there are: 'a, b, c, d, e and 7 more'."""
    shown = separator.join(map(str, names[:limit]))
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def printable(text: str) -> str:
    """The text with what would steer a terminal, or turn the order of letters around, written out: '\\x1b', '\\u202e'.

    Names of files and classes come from others; line breaks and tabs stay.
    """
    return text.translate(_STEERING)
