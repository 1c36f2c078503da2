"""Login links, logins, and every secret that the local Studio has issued."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass, field

# The name is known from front-end code of Studio. The flags of the real cookie are unknown.
COOKIE = "StudioSessionToken"


@dataclass
class LoginLink:
    """A login link that was issued."""

    door: str
    landing: str
    deadline: float
    login_seconds: float
    used: bool = False


@dataclass
class Login:
    """A login that a link has created."""

    door: str
    deadline: float


@dataclass
class Logins:
    """Every link and login of one local Studio. Times are ``time.monotonic`` seconds."""

    user_profile_name: str
    links: dict[str, LoginLink] = field(default_factory=dict)
    logins: dict[str, Login] = field(default_factory=dict)
    handed_out: dict[str, None] = field(default_factory=dict)
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def remember(self, secret: str) -> None:
        """Remember a value that must never appear in a log."""
        if secret:
            self.handed_out[secret] = None

    def remember_cookie(self, set_cookie: str) -> None:
        """Remember the value of a cookie that the Jupyter server has set."""
        self.remember(set_cookie.partition(";")[0].partition("=")[2].strip('"'))

    def new_link(self, link: LoginLink, claims: dict[str, object]) -> str:
        """Register a link and return its token: a JWT of about 4 kB, as seen on AWS."""
        now = int(time.time())
        payload = {
            # This comes first, so that each token starts differently.
            "cipherText": secrets.token_urlsafe(900),
            "fasCredentials": secrets.token_urlsafe(1200),
            "identityId": secrets.token_hex(16),
            **claims,
            # As seen on AWS: when the login expires, not when the link expires.
            "exp": now + int(link.login_seconds),
            "iat": now,
        }
        body = f"{_segment({'alg': 'HS256'})}.{_segment(payload)}"
        mark = base64.urlsafe_b64encode(hmac.new(self._key, body.encode(), hashlib.sha256).digest())
        token = f"{body}.{mark.decode().rstrip('=')}"
        self.links[token] = link
        self.remember(token)
        self.remember(token[:100])
        return token

    def redeem(self, token: str, door: str, *, single_use: bool) -> tuple[str, LoginLink] | None:
        """Log in with a link's token at a gateway. Return None if the link is unknown, expired or already used."""
        link = self.links.get(token)
        if link is None or link.door != door or time.monotonic() > link.deadline or (single_use and link.used):
            return None
        link.used = True
        cookie = secrets.token_urlsafe(48)
        self.remember(cookie)
        self.logins[cookie] = Login(door, time.monotonic() + link.login_seconds)
        return cookie, link

    def find(self, cookie_header: str, door: str) -> str | None:
        """Return the valid login among a request's cookies; None if there is none."""
        for pair in cookie_header.split(";"):
            name, _, value = pair.strip().partition("=")
            login = self.logins.get(value) if name == COOKIE else None
            if login is not None and login.door == door and time.monotonic() < login.deadline:
                return value
        return None

    def cookies(self, cookie: str) -> list[tuple[str, str]]:
        """Return the ``Set-Cookie`` fields of a new login; without ``Secure``, because this is plain HTTP."""
        expiry = int((time.time() + self.logins[cookie].deadline - time.monotonic()) * 1000)
        return [
            ("Set-Cookie", f"{COOKIE}={cookie}; Path=/; HttpOnly; SameSite=Lax"),
            ("Set-Cookie", "authMode=Iam; Path=/"),
            ("Set-Cookie", f"expiryTime={expiry}; Path=/"),
            ("Set-Cookie", f"studioUserProfileName={self.user_profile_name}; Path=/"),
        ]

    def expire_all(self) -> None:
        """End every login at once."""
        self.logins.clear()


def _segment(value: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode().rstrip("=")
