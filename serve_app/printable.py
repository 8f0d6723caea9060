"""Text from outside, made safe for one line of a log, a header or an error message."""

import math


def printable(text: str, limit: int = 80) -> str:
    """`text` on one line, in characters that UTF-8 can encode, at most `limit` of them and an ellipsis.

    Control characters, line ends, terminal escapes and lone surrogates become backslash escapes.
    """
    shown = text[:limit]
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
    return escaped + "…" if len(text) > limit else escaped


def show(value: object) -> str:
    """A value as an error message names it: short, printable, and in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{printable(value, 60)}'"
    if isinstance(value, int):
        return printable(str(value), 40)  # the body parser bounds the digits of integers
    if isinstance(value, float):
        return format(value, ".15g") if math.isfinite(value) else {"nan": "NaN"}.get(str(value), "Infinity")
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else "a value of another type"
