"""Logging in, for pages and WebSockets, which can't send a header of their own."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from merlina.api.middleware.sessions import SESSION_COOKIE, SESSION_SECONDS, address_of
from merlina.api.services import ServicesDep
from merlina.errors import UnauthorizedError
from merlina.schemas.system import LoginRequest, SessionState

router = APIRouter(tags=["session"])


@router.post("/login")
def login(credentials: LoginRequest, request: Request, response: Response, services: ServicesDep) -> SessionState:
    """Exchanges the API key for a cookie that lasts 30 days. An address may fail 10 times in 5 minutes."""
    sessions = services.sessions
    if sessions is None:
        return SessionState(login_required=False, logged_in=True)
    address = address_of(request)
    sessions.attempts.check(address)
    if not sessions.is_key(credentials.api_key.get_secret_value()):
        sessions.attempts.failed(address)
        raise UnauthorizedError("That is not this server's API key")
    sessions.attempts.succeeded(address)
    response.set_cookie(
        SESSION_COOKIE,
        sessions.new(),
        max_age=SESSION_SECONDS,
        # Without a path the browser takes that of this request: servers below different paths of a host stay apart.
        path=None,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https" or services.settings.domain.startswith("https:"),
    )
    return SessionState(login_required=True, logged_in=True)


@router.post("/logout")
def logout(request: Request, response: Response, services: ServicesDep) -> SessionState:
    """Ends the session: its cookie is taken back, and refused from now on."""
    if services.sessions:
        services.sessions.end(request.cookies.get(SESSION_COOKIE, ""))
    response.set_cookie(SESSION_COOKIE, max_age=0, path=None, httponly=True, samesite="strict")
    required = services.sessions is not None
    return SessionState(login_required=required, logged_in=not required)


@router.get("/session")
def session(request: Request, services: ServicesDep) -> SessionState:
    """Whether this server asks for a key, and whether the asker has one."""
    sessions = services.sessions
    admitted = sessions is None or sessions.admits(request)
    return SessionState(login_required=sessions is not None, logged_in=admitted)
