"""URLs of a Redis, whose credentials no message may show."""

from urllib.parse import urlsplit

ENCODE = (
    "percent-encode the characters of its user name and password that mean something in a URL: / as %2F, # as %23,"
    " ? as %3F, @ as %40, : as %3A"
)


def url_problem(url: str) -> str | None:
    """Return what is wrong with the URL, without any part of it, or None.

    A `/`, `?` or `#` in a password ends the part of the URL that names the server, so that the beginning of the
    password would be taken for a host and a port, and be shown with them.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return f"the job store's URL cannot be read: {ENCODE}"
    behind = parts.path + parts.fragment + parts.query.partition("=")[0]
    if parts.netloc and "@" not in parts.netloc and "@" in behind:
        return f"the job store's URL has its @ behind the host: {ENCODE}"
    return None
