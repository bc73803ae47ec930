"""Sessions of the page: signed cookies that replace the API key until they expire or are logged out."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import HTTPConnection, cookie_parser

from merlina.errors import TooManyAttemptsError
from merlina.private_files import write_private

SESSION_COOKIE = "merlina_session"
SESSION_SECONDS = 30 * 24 * 3600
_MAX_WRONG_KEYS = 10
_COUNTING_SECONDS = 300.0
_MAX_ADDRESSES = 10_000


def address_of(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client else "unknown"


class LoggedOut:
    """Sessions that were logged out before they expired, stored in a file so that they stay invalid after a restart."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._expiry = self._read()

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._expiry

    def add(self, session_id: str, expires: int) -> None:
        """Record a logout durably. Raises OSError if it cannot be written."""
        with self._lock:
            valid = {known: until for known, until in self._expiry.items() if until > time.time()}
            self._expiry = {**valid, session_id: expires}
            write_private(self._file, "".join(f"{known} {until}\n" for known, until in self._expiry.items()).encode())

    def _read(self) -> dict[str, int]:
        if not self._file.exists():
            return {}
        parts = (line.split() for line in self._file.read_text("ascii", errors="replace").splitlines())
        return {part[0]: int(part[1]) for part in parts if len(part) == 2 and part[1].isdecimal()}


@dataclass
class WrongKeys:
    """Counts wrong keys per address, in logins and in headers: an address may send 10 in 5 minutes.

    Beyond that even the right key is refused, since it may be a guess; except in headers from an address that has sent
    it before.
    """

    _trusted: dict[str, None] = field(default_factory=dict)
    _failures: dict[str, deque[float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, address: str) -> None:
        """Raise TooManyAttemptsError, with the seconds to wait, if the address sent too many wrong keys."""
        with self._lock:
            self._check(address)

    def succeeded(self, address: str) -> None:
        """Record that the address sent the right key. Raises TooManyAttemptsError if it may have been a guess."""
        with self._lock:
            if address not in self._trusted:
                self._check(address)
                self._trusted = dict.fromkeys([*self._trusted, address][-_MAX_ADDRESSES:])

    def failed(self, address: str) -> None:
        """Count a wrong key. Raises TooManyAttemptsError without counting it if there were too many before."""
        with self._lock:
            self._check(address)
            if len(self._failures) >= _MAX_ADDRESSES:
                self._failures = {known: times for known in list(self._failures) if (times := self._recent(known))}
            self._failures.setdefault(address, deque(maxlen=_MAX_WRONG_KEYS)).append(time.monotonic())

    def _check(self, address: str) -> None:
        recent = self._recent(address)
        if len(recent) >= _MAX_WRONG_KEYS:
            wait = math.ceil(recent[0] + _COUNTING_SECONDS - time.monotonic())
            raise TooManyAttemptsError(f"Too many wrong API keys from {address}", wait)

    def _recent(self, address: str) -> deque[float]:
        times = self._failures.get(address, deque())
        while times and times[0] < time.monotonic() - _COUNTING_SECONDS:
            times.popleft()
        return times


@dataclass(frozen=True)
class Sessions:
    """Cookies of the form `id.expires.signature`; changing the key invalidates all of them."""

    key: bytes
    logged_out: LoggedOut
    wrong_keys: WrongKeys = field(default_factory=WrongKeys)

    def is_key(self, given: str) -> bool:
        """Compare with the key in constant time."""
        return secrets.compare_digest(given.encode("utf-8", "replace"), self.key)

    def new(self) -> str:
        session = f"{secrets.token_hex(16)}.{int(time.time()) + SESSION_SECONDS}"
        return f"{session}.{self._sign(session)}"

    def is_valid(self, cookie: str) -> bool:
        session, _, signature = cookie.rpartition(".")
        session_id, _, expires = session.partition(".")
        signed = secrets.compare_digest(signature.encode("utf-8", "replace"), self._sign(session).encode())
        return signed and expires.isdigit() and int(expires) > time.time() and session_id not in self.logged_out

    def end(self, cookie: str) -> None:
        """Invalidate the cookie's session; an invalid cookie has no effect."""
        if self.is_valid(cookie):
            session_id, expires, _ = cookie.split(".")
            self.logged_out.add(session_id, int(expires))

    def is_authorized(self, connection: HTTPConnection) -> bool:
        """Return whether a request or WebSocket has the key or a valid session.

        A wrong key is counted. Raises TooManyAttemptsError if the address has sent too many.
        """
        headers = connection.headers
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
        if given:
            return self._is_authorized_key(given, address_of(connection))
        return self.is_valid(cookie_parser(headers.get("cookie", "")).get(SESSION_COOKIE, ""))

    def _is_authorized_key(self, given: str, address: str) -> bool:
        if self.is_key(given):
            self.wrong_keys.succeeded(address)
            return True
        self.wrong_keys.failed(address)
        return False

    def _sign(self, session: str) -> str:
        return hmac.new(self.key, f"session {session}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()
