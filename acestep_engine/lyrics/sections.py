"""Names of the sections of a song, and the structure tags that stand for them."""

import re

SECTION = (
    r"(?P<section>pre[ -]?chorus|post[ -]?chorus|chorus|refrain|verse|intro|bridge|outro|hook|solo|break|interlude|"
    r"instrumental)"
)
_TAGS = {
    "prechorus": "[pre-chorus]",
    **dict.fromkeys(("refrain", "post-chorus", "postchorus"), "[chorus]"),
    **dict.fromkeys(("interlude", "instrumental"), "[inst]"),
}
_QUALITY = r"(?:(?:first|second|third|final|last|double|guitar|piano|sax|drum|instrumental)[ -]+)?"
_COUNT = r"(?:\s*[ #-]\s*(?:[0-9]{1,2}|[ivx]{1,4}|one|two|three|four|five))?"  # Verse 2, Verse-2, Verse II
_REPEAT = r"(?:\s*(?:[x×]\s?[0-9]{1,2}|\([^()]{0,40}\)))?"  # Chorus x2, Chorus (softly)
_REMARK = r"(?P<remark>(?:\s*[:：|,]|\s[–—-])\s*[^\s\])】）}>].{0,40}?)?"  # Verse 1: Anna
_HEADING = re.compile(
    rf"(?P<open>[\[(【（{{<]\s*)?{_QUALITY}{SECTION}{_COUNT}{_REPEAT}\s*{_REMARK}\s*[\])】）}}>]?\s*[:：]?",
    re.IGNORECASE,
)
_LONGEST_HEADING = 120  # characters; the pattern is not tried on more


def tag_of_name(name: str) -> str:
    """Return the structure tag of a section that `SECTION` has matched."""
    name = name.lower().replace(" ", "-")
    return _TAGS.get(name, f"[{name}]")


def tag_of_heading(text: str, remark: bool = False) -> str | None:
    """Return the structure tag of a text that is nothing but a heading, such as `Verse 2` or `[Chorus x2]`.

    In brackets, or with `remark`, words may follow a colon: `[Verse 1: Anna]`.
    """
    found = _HEADING.fullmatch(text.strip()) if len(text) <= _LONGEST_HEADING else None
    if found is None or (found["remark"] and not (found["open"] or remark)):
        return None
    return tag_of_name(found["section"])
