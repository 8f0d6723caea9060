"""Hosts and ports as people type them, and as URLs need them."""

import ipaddress


def bare_host(host: str) -> str:
    """Return the host without the brackets that an IPv6 address has in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def authority(host: str, port: int) -> str:
    """Return `host:port` as a URL has it: an IPv6 address in brackets, its zone percent-encoded."""
    host = bare_host(host)
    return f"[{host.replace('%', '%25')}]:{port}" if ":" in host else f"{host}:{port}"


def is_every_interface(host: str) -> bool:
    """Return whether a server at this host listens at every address of its machine."""
    return host in ("", "0.0.0.0", "::")


def split_address(address: str) -> tuple[str, int] | None:
    """Return the host and the port of `host:port` or `[host]:port`, or None for any other text."""
    host, colon, port = address.rpartition(":")
    host_is_plain = bool(host) and "/" not in host and (":" not in host or host != bare_host(host))
    if not (colon and host_is_plain and port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65_536):
        return None
    return bare_host(host), int(port)


def loopback_names(host: str) -> tuple[str, ...]:
    """The names by which a server at this address is called, if only this machine reaches it; else none.

    A web page can have its own name mean this machine (DNS rebinding). A Host header tells.
    """
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(bare_host(host)).is_loopback
    except ValueError:
        return ()
    own = authority(host, 0).removesuffix(":0")
    return tuple(dict.fromkeys(("localhost", "127.0.0.1", "[::1]", own))) if is_loopback else ()
