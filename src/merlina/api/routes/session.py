"""Login and logout for browsers, which cannot send the API key in the header of a WebSocket."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from merlina.api.middleware.sessions import SESSION_COOKIE, SESSION_SECONDS, address_of
from merlina.api.services import ServicesDep
from merlina.errors import UnauthorizedError
from merlina.schemas.system import LoginRequest, SessionState

router = APIRouter(tags=["session"])


@router.post("/login")
def login(credentials: LoginRequest, request: Request, response: Response, services: ServicesDep) -> SessionState:
    """Exchange the API key for a session cookie, valid for 30 days. An address may fail 10 times in 5 minutes."""
    sessions = services.sessions
    if sessions is None:
        return SessionState(login_required=False, logged_in=True)
    address = address_of(request)
    sessions.wrong_keys.check(address)
    if not sessions.is_key(credentials.api_key.get_secret_value()):
        sessions.wrong_keys.failed(address)
        raise UnauthorizedError("The API key is not valid for this server")
    sessions.wrong_keys.succeeded(address)
    response.set_cookie(
        SESSION_COOKIE,
        sessions.new(),
        max_age=SESSION_SECONDS,
        # Without a path, the cookie applies to this server's path only, not to others on the same host.
        path=None,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https" or services.settings.domain.startswith("https:"),
    )
    return SessionState(login_required=True, logged_in=True)


@router.post("/logout")
def logout(request: Request, response: Response, services: ServicesDep) -> SessionState:
    """Log out: delete the session cookie and invalidate the session."""
    if services.sessions:
        services.sessions.end(request.cookies.get(SESSION_COOKIE, ""))
    response.set_cookie(SESSION_COOKIE, max_age=0, path=None, httponly=True, samesite="strict")
    required = services.sessions is not None
    return SessionState(login_required=required, logged_in=not required)


@router.get("/session")
def session(request: Request, services: ServicesDep) -> SessionState:
    """Return whether the server requires an API key and whether the request is authorized."""
    sessions = services.sessions
    admitted = sessions is None or sessions.is_authorized(request)
    return SessionState(login_required=sessions is not None, logged_in=admitted)
