"""Times and headers of timed lyrics: LRC files, SRT and WebVTT subtitles."""

import re
from collections.abc import Sequence

_CLOCK = r"(?:[0-9]{1,2}:)?[0-9]{1,3}:[0-5]?[0-9]"
_EXACT_TIME = re.compile(rf"[\[<]\s?{_CLOCK}[.:,][0-9]{{1,3}}\s?[\]>]|<{_CLOCK}>")  # of a line or a word
_TIME = re.compile(rf"\[\s?{_CLOCK}\s?\]")
_LEADING_BRACKETS = re.compile(r"(?:\s*+(?:\[[^\[\]]*+\]|<[^<>]*+>))++\s*+")
_SPACES = re.compile(r"\s+")

# Keys of LRC files, some of them of single programs. `lang` and section names are none.
_HEADER_KEYS = (
    "ti|title|ar|artist|al|album|au|author|by|creator|editor|lr|re|tool|ve|version|offset|length|id|hash|sign|qq|total|"
    "kana|#"
)
_HEADER = re.compile(rf"\[\s*(?:{_HEADER_KEYS})\s*[:：][^\[\]]*+(?:\[[^\[\]]*+\][^\[\]]*+)*+\]", re.IGNORECASE)

_CUE = re.compile(r"\s*(?:[0-9]{1,3}:)?[0-9]{1,2}:[0-9]{2}(?:[.,][0-9]{1,3})?\s*(?:--|[–—-])>\s*[0-9]{1,3}:.*")
_CUE_NUMBER = re.compile(r"\s*[0-9]{1,5}\s*")
_FILE_HEADER = re.compile(r"(?:Kind|Language|X-TIMESTAMP-MAP)\s*[:=].*", re.IGNORECASE)  # below WEBVTT
_FILE_BLOCK = re.compile(r"(?:NOTE|STYLE|REGION)(?:\s.*)?")


def without_times(line: str) -> tuple[str, str | None]:
    """Return `line` without its times, and the first of them.

    `[mm:ss]` is a time where the line begins, beside other tags. `[mm:ss.xx]` and the times of words, `<mm:ss.xx>`, are
    times anywhere.
    """
    start = _LEADING_BRACKETS.match(line)
    leading = start[0] if start else ""
    found = _TIME.search(leading) or _EXACT_TIME.search(line)
    if found is None:
        return line, None
    rest = _TIME.sub("", leading) + line[len(leading) :]
    return _SPACES.sub(" ", _EXACT_TIME.sub("", rest)).strip(), found[0]


def is_header(line: str) -> bool:
    """Return whether a line is a header of an LRC file and no more: `[ti:Song]`, `[offset:500]`."""
    return _HEADER.fullmatch(line.strip()) is not None


def subtitle_lines(lines: Sequence[str]) -> set[int]:
    """Return the indices of the lines of a subtitle file that are not to be sung.

    They are the times `00:00:12,000 --> 00:00:15,000`, the numbers before them, the line WEBVTT, its headers, and its
    blocks NOTE, STYLE and REGION.
    """
    found = {i for i, line in enumerate(lines) if ">" in line and _CUE.fullmatch(line)}
    found |= {i - 1 for i in found if i > 0 and _CUE_NUMBER.fullmatch(lines[i - 1])}
    first = next((i for i, line in enumerate(lines) if line.strip()), None)
    if first is not None and re.match(r"WEBVTT(?:\s|$)", lines[first].strip()):
        found |= {first, *_webvtt_lines(lines, first + 1, found)}
    return found


def _webvtt_lines(lines: Sequence[str], start: int, cues: set[int]) -> set[int]:
    """The headers and blocks of a WebVTT file from the line `start`, and the names of its `cues`."""
    found = set()
    dropping, after_blank = _FILE_HEADER, False
    for i in range(start, len(lines)):
        line = lines[i].strip()
        if after_blank and _FILE_BLOCK.fullmatch(line):
            dropping = re.compile(".+")
        if not line:
            dropping = re.compile("(?!)")
        elif dropping.fullmatch(line) or (after_blank and i + 1 in cues):
            found.add(i)
        after_blank = not line
    return found
