"""The one tree of errors Merlina raises on purpose.

A message says what is wrong, with which value, and what to do about it: it is shown to people as it stands.
To add one: subclass the nearest branch, keep it picklable (all state in `args`), and give it a line in the table
of `merlina.api.errors` only if no ancestor's HTTP status fits. Nothing here knows about HTTP.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

_LONGEST_MESSAGE = 1000


def shorten(text: str, most: int = _LONGEST_MESSAGE) -> str:
    """Return the text cut to `most` characters: what a file, a library or a client says may be a book."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"


def first_line(error: BaseException) -> str:
    """Return the first line of the error's text, or the name of its type if the text is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class MerlinaError(Exception):
    """Base of all errors whose message is meant for the user."""

    @property
    def message(self) -> str:
        return shorten(str(self.args[0])) if self.args else type(self).__name__


class InvalidRequestError(MerlinaError):
    """What was asked for can't be done as asked: one message, and one entry per field or check that failed."""

    def __init__(self, message: str, errors: Sequence[str] = (), warnings: Sequence[str] = ()) -> None:
        super().__init__(message, tuple(errors), tuple(warnings))

    def __str__(self) -> str:
        return "; ".join([self.message, *self.errors])

    @property
    def errors(self) -> tuple[str, ...]:
        return tuple(map(shorten, self.args[1]))

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(map(shorten, self.args[2]))


class DataError(MerlinaError):
    """A data set, or one row of it, can't be read or used."""


class ModelError(MerlinaError):
    """A base model or its tokenizer can't be found, read or trained."""


class TrainingError(MerlinaError):
    """A run can't go on; the message is the job's `error`."""


class NotFoundError(MerlinaError):
    """No job, upload, configuration or file by that name."""


class UnauthorizedError(MerlinaError):
    """No valid API key."""


class ForbiddenError(MerlinaError):
    """A path outside the allowed roots, or an origin that may not use this server."""


class TooLargeError(MerlinaError):
    """A body or a file over its limit."""


class TimedOutError(MerlinaError):
    """A client sent nothing for too long."""


class DiskFullError(MerlinaError):
    """There is no room left for what was to be written."""


def is_disk_full(error: OSError) -> bool:
    """Whether the system refused to write because the disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class HelperError(MerlinaError):
    """The helper process, which holds what needs transformers, failed or took too long."""


class ConflictError(MerlinaError):
    """What was asked for would get in the way of something else, or something else has got in its way."""


class StoredConfigError(ConflictError):
    """A stored configuration is of a form that this version cannot read."""


class OverridableError(ConflictError):
    """A conflict that the same request with `force` overrides."""


class StartOverError(OverridableError):
    """A run cannot continue where it was; with `force` it starts over."""


class InsufficientMemoryError(OverridableError):
    """A model to chat with would need memory that isn't free or that runs have or wait for; it can be forced."""


class BusyError(MerlinaError):
    """Too much is asked at the same time; asking again later may go well."""


class TooManyAttemptsError(MerlinaError):
    """An address has failed to log in too often; `seconds` says how long it has to wait."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message, seconds)

    @property
    def message(self) -> str:
        return f"{self.args[0]}; try again in {self.seconds} s"

    @property
    def seconds(self) -> int:
        return self.args[1]  # type: ignore[no-any-return]


class UnreachableError(MerlinaError):
    """The Hugging Face Hub does not answer, and what is needed of it is not on this machine."""


class ServerError(MerlinaError):
    """A running Merlina server can't be reached, or answered with something unexpected."""
