"""Tells a client's server that a job has ended: signed, and only where the operator allows it.

No redirect is followed, and no private address is called unless that is allowed. Signatures follow Standard Webhooks
(https://www.standardwebhooks.com): headers `webhook-id`, `webhook-timestamp` and `webhook-signature`, which is `v1,`
and the base64 of HMAC-SHA256 over `id.timestamp.body`.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx

MAX_URL_CHARACTERS = 2_048
URL_CHARACTERS = re.compile(r"[\x21-\x7e]+")
TIMEOUT_S = 10.0  # for all of a delivery
AT_ONCE = 8  # deliveries
# After each delivery that failed; then it is given up. About a day in all.
RETRY_DELAYS_S = (5.0, 30.0, 120.0, 600.0, 1_800.0, 7_200.0, 28_800.0, 43_200.0)
SECRET_PREFIX = "whsec_"
GONE = 410  # the receiver wants no more


@dataclass(frozen=True)
class CallbackRules:
    """Where callbacks may go. `hosts` are names, or `*.name` for all below one; none switches callbacks off."""

    hosts: tuple[str, ...] = ()
    allow_private: bool = False  # also addresses of private networks and of this machine
    secret: str = field(default="", repr=False)  # what signs them; empty sends no signature


class CallbackError(Exception):
    """A callback may not go there, or did not arrive. The text is for people, and names no address."""


def check_url(url: str, rules: CallbackRules) -> None:
    """Raise CallbackError with what is wrong about a URL, before anything is looked up."""
    if not rules.hosts:
        raise CallbackError("callbacks are off: the operator lists the hosts they may go to (callbacks.hosts)")
    if len(url) > MAX_URL_CHARACTERS:
        raise CallbackError(f"is longer than {MAX_URL_CHARACTERS} characters")
    if not URL_CHARACTERS.fullmatch(url):
        raise CallbackError("has characters that a URL cannot have: write them as %XX, and names in punycode")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
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
    return "v1," + base64.b64encode(hmac.digest(_key_of(secret), signed, hashlib.sha256)).decode()


def _key_of(secret: str) -> bytes:
    """The bytes of a secret. Standard Webhooks writes them as base64 behind `whsec_`."""
    if secret.startswith(SECRET_PREFIX):
        with suppress(binascii.Error, ValueError):
            return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    return secret.encode()


class Sender:
    """Delivers callbacks. Keeps none of the threads that others need, whatever name servers and receivers do."""

    def __init__(self, rules: CallbackRules) -> None:
        self._rules = rules
        self._tls = httpx.create_ssl_context(trust_env=False)  # once: it takes long
        self._lookups = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="callback-names")

    def close(self) -> None:
        """Deliver nothing more."""
        self._lookups.shutdown(wait=False, cancel_futures=True)

    async def deliver(self, url: str, message_id: str, content: dict[str, Any]) -> bool:
        """POST `content` as JSON, once. True if it arrived, False if the receiver wants no more.

        Raises CallbackError if it did not arrive within TIMEOUT_S, or may not go there.
        """
        check_url(url, self._rules)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                status = await self._post(url, message_id, json.dumps(content, ensure_ascii=False).encode())
        except (httpx.HTTPError, TimeoutError) as error:
            raise CallbackError(f"the receiver cannot be reached ({type(error).__name__})") from error
        if status == GONE:
            return False
        if not 200 <= status < 300:
            raise CallbackError(f"the receiver answered {status}")
        return True

    async def _post(self, url: str, message_id: str, body: bytes) -> int:
        """The status that the receiver answers."""
        parts = urlsplit(url)
        host = str(parts.hostname)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = await self._resolve(host, port)
        now_s = int(time.time())
        headers = {"Host": parts.netloc, "Content-Type": "application/json", "User-Agent": "ace-step"}
        headers |= {"webhook-id": message_id, "webhook-timestamp": str(now_s)}
        if self._rules.secret:
            headers["webhook-signature"] = sign(self._rules.secret, message_id, now_s, body)
        # To the address that was checked: looked up again, the name could mean another one.
        target = httpx.URL(url).copy_with(host=address, port=port)
        options = {"sni_hostname": host}
        async with (
            httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False, verify=self._tls) as client,
            client.stream("POST", target, content=body, headers=headers, extensions=options) as response,
        ):
            return response.status_code  # its body is not read

    async def _resolve(self, host: str, port: int) -> str:
        """An address of the host, all of whose addresses are allowed."""
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._lookups, look_up)
        except (OSError, UnicodeError) as error:
            raise CallbackError("the receiver's name cannot be resolved") from error
        addresses = [str(entry[4][0]) for entry in found]
        if not self._rules.allow_private and not all(_is_public(address) for address in addresses):
            raise CallbackError("the receiver has a private address, which the operator has not allowed")
        return addresses[0]


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.split("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_global and not parsed.is_multicast


def next_attempt_at(attempts: int, now: float) -> float | None:
    """When to try again after so many deliveries that failed; None to give up."""
    return now + RETRY_DELAYS_S[attempts - 1] if attempts <= len(RETRY_DELAYS_S) else None
