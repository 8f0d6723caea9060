"""Tells a client's server that a job has ended: signed, and only where the operator allows it.

No redirect is followed, and no private address is called unless that is allowed. Signatures follow Standard Webhooks
(https://www.standardwebhooks.com): headers `webhook-id`, `webhook-timestamp` and `webhook-signature`, which is `v1,`
and the base64 of HMAC-SHA256 over `id.timestamp.body`.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

MAX_URL_CHARACTERS = 2_048
TIMEOUT_S = 10.0
# After each delivery that failed; then it is given up. About a day in all.
RETRY_DELAYS_S = (5.0, 30.0, 120.0, 600.0, 1_800.0, 7_200.0, 28_800.0, 43_200.0)
GONE = 410  # the receiver wants no more


@dataclass(frozen=True)
class CallbackRules:
    """Where callbacks may go. `hosts` are names, or `*.name` for all below one; none switches callbacks off."""

    hosts: tuple[str, ...] = ()
    allow_private: bool = False  # also addresses of private networks and of this machine
    secret: str = ""  # what signs them; empty sends no signature


class CallbackError(Exception):
    """A callback may not go there, or did not arrive. The text is for people, and names no address."""


def check_url(url: str, rules: CallbackRules) -> None:
    """Raise CallbackError with what is wrong about a URL, before anything is looked up."""
    if not rules.hosts:
        raise CallbackError("callbacks are off: the operator lists the hosts they may go to (callbacks.hosts)")
    if len(url) > MAX_URL_CHARACTERS:
        raise CallbackError(f"is longer than {MAX_URL_CHARACTERS} characters")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise CallbackError("is no URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise CallbackError("is no http or https URL")
    if parts.username is not None or parts.password is not None:
        raise CallbackError("must not carry a user name or a password")
    if not any(_matches(host, allowed) for allowed in rules.hosts):
        raise CallbackError("goes to a host that the operator has not allowed (callbacks.hosts)")


def _matches(host: str, allowed: str) -> bool:
    host, allowed = host.lower().rstrip("."), allowed.lower()
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed


def sign(secret: str, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The `webhook-signature` of a message."""
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret.encode(), signed, hashlib.sha256)).decode()


async def deliver(url: str, rules: CallbackRules, message_id: str, content: dict[str, Any]) -> bool:
    """POST `content` as JSON, once. True if it arrived, False if the receiver wants no more.

    Raises CallbackError if it did not arrive, or may not go there.
    """
    check_url(url, rules)
    parts = urlsplit(url)
    host = str(parts.hostname)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = await _resolve(host, port, rules)
    body = json.dumps(content, ensure_ascii=False).encode()
    now_s = int(time.time())
    headers = {"Host": parts.netloc, "Content-Type": "application/json", "User-Agent": "ace-step"}
    headers |= {"webhook-id": message_id, "webhook-timestamp": str(now_s)}
    if rules.secret:
        headers["webhook-signature"] = sign(rules.secret, message_id, now_s, body)
    # To the address that was checked: looked up again, the name could mean another one.
    target = httpx.URL(url).copy_with(host=address, port=port)
    try:
        async with (
            httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False) as client,
            client.stream(
                "POST", target, content=body, headers=headers, extensions={"sni_hostname": host}
            ) as response,  # its body is not read
        ):
            status = response.status_code
    except httpx.HTTPError as error:
        raise CallbackError(f"the receiver cannot be reached ({type(error).__name__})") from error
    if status == GONE:
        return False
    if not 200 <= status < 300:
        raise CallbackError(f"the receiver answered {status}")
    return True


async def _resolve(host: str, port: int, rules: CallbackRules) -> str:
    """An address of the host, all of whose addresses are allowed."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise CallbackError("the receiver's name cannot be resolved") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not rules.allow_private and not all(_is_public(address) for address in addresses):
        raise CallbackError("the receiver has a private address, which the operator has not allowed")
    return addresses[0]


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.split("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_global and not parsed.is_multicast


def next_attempt_at(attempts: int, now: float, delays_s: Sequence[float] = RETRY_DELAYS_S) -> float | None:
    """When to try again after so many deliveries that failed; None to give up."""
    return now + delays_s[attempts - 1] if attempts <= len(delays_s) else None
