"""The exceptions that Merlina raises deliberately, and the findings that an error may list.

A message states what is wrong, with which value, and what to do; it is shown to users unchanged.
To add an error: subclass the nearest class, keep it picklable (all state in `args`), and add it to the table in
`merlina.api.error_responses` only if no ancestor's HTTP status fits. This module does not depend on HTTP.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

_MAX_MESSAGE = 1000
# The disk, or the user's quota, is full.
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


def shorten(text: str, max_length: int = _MAX_MESSAGE) -> str:
    """Return the text truncated to `max_length` characters; files, libraries and clients may send longer texts."""
    return text if len(text) <= max_length else f"{text[:max_length]}… ({len(text) - max_length:,} more characters)"


def first_line(error: BaseException) -> str:
    """Return the first line of the error's text, or the name of its type if the text is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class MerlinaError(Exception):
    """Base class of all errors with a message for the user."""

    @property
    def message(self) -> str:
        return shorten(str(self.args[0])) if self.args else type(self).__name__


Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """A problem that a check or a validation found. `field` is the dotted path of its field, None without one."""

    message: str
    field: str | None = None
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class InvalidRequestError(MerlinaError):
    """A request that is not valid: a message, and a finding for each field or check that failed."""

    def __init__(self, message: str, findings: Sequence[Finding] = ()) -> None:
        super().__init__(message, tuple(findings))

    def __str__(self) -> str:
        return "; ".join([self.message, *self.errors])

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(replace(finding, message=shorten(finding.message)) for finding in self.args[1])

    @property
    def errors(self) -> tuple[str, ...]:
        """The findings of severity `error` as text."""
        return tuple(str(finding) for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[str, ...]:
        """The findings of severity `warning` as text."""
        return tuple(str(finding) for finding in self.findings if finding.severity == "warning")


class DataError(MerlinaError):
    """A data set or one of its rows cannot be read or used."""


class ModelError(MerlinaError):
    """A base model or its tokenizer cannot be found, read or trained."""


class TrainingError(MerlinaError):
    """A run failed; the message becomes the job's `error`."""


class NotFoundError(MerlinaError):
    """A job, upload, configuration or file does not exist."""


class UnauthorizedError(MerlinaError):
    """The request has no valid API key."""


class ForbiddenError(MerlinaError):
    """A path is outside the allowed folders, or an origin may not use this server."""


class TooLargeError(MerlinaError):
    """A request body or a file exceeds its size limit."""


class TimedOutError(MerlinaError):
    """A client sent no data for too long."""


class DiskFullError(MerlinaError):
    """The disk has too little free space for a write."""


def is_disk_full(error: OSError) -> bool:
    """Return whether a write failed because the disk or the user's quota is full."""
    return error.errno in DISK_FULL_ERRNOS


class HelperError(MerlinaError):
    """A helper or chat process failed or took too long."""


class ConflictError(MerlinaError):
    """The request conflicts with the current state or with another operation."""


class IllegalTransitionError(ConflictError):
    """A job cannot move from its current state to the requested one."""


class StoredConfigError(ConflictError):
    """A stored configuration has a format that this version cannot read."""


class OverridableError(ConflictError):
    """A conflict that the same request with `force` overrides."""


class StartOverError(OverridableError):
    """A run cannot resume from a checkpoint; with `force` it starts over."""


class InsufficientMemoryError(OverridableError):
    """A chat model needs memory that is not free or that runs use or wait for."""


class BusyError(MerlinaError):
    """Too many operations at the same time; a later request may succeed."""


class TooManyAttemptsError(MerlinaError):
    """Too many failed logins from one address, which has to wait for `seconds`."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message, seconds)

    @property
    def message(self) -> str:
        return f"{self.args[0]}; try again in {self.seconds} s"

    @property
    def seconds(self) -> int:
        return self.args[1]  # type: ignore[no-any-return]


class UnreachableError(MerlinaError):
    """The Hub does not respond, and the required files are not cached on this machine."""


class ServerError(MerlinaError):
    """A Merlina server cannot be started or reached, or sent an unexpected response."""
