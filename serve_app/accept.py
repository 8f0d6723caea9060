"""Accept headers: the kind of an answer that they ask for, and of audio its format."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fastapi import Request

from acestep_engine.params import AudioFormat
from serve_app.errors import HttpProblem
from serve_app.printable import printable

Kind = Literal["json", "audio", "zip", "multipart"]
KINDS: tuple[Kind, ...] = ("zip", "multipart", "audio", "json")  # of those liked equally, but for a route's usual one
MEDIA_RANGES: Mapping[Kind, tuple[str, ...]] = {
    "json": ("application/json", "application/*"),
    "audio": ("audio/", "application/octet-stream"),
    "zip": ("application/zip",),
    "multipart": ("multipart/mixed",),
}
MAX_RANGES = 50  # of one header that are looked at

# Names that clients have for our formats. Ogg is told from Opus by its parameter `codecs`.
AUDIO_TYPES: Mapping[str, AudioFormat] = {
    **dict.fromkeys(("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"), "wav"),
    **dict.fromkeys(("audio/mpeg", "audio/mp3", "audio/x-mp3", "audio/mpeg3"), "mp3"),
    **dict.fromkeys(("audio/flac", "audio/x-flac"), "flac"),
    **dict.fromkeys(("audio/ogg", "application/ogg", "audio/vorbis"), "ogg"),
    "audio/opus": "opus",
}
ANY_AUDIO = frozenset(("audio/*", "*/*", "application/octet-stream", "application/*"))


@dataclass(frozen=True)
class MediaRange:
    """One entry of an Accept header, in lower case."""

    name: str
    codecs: str
    quality: float

    @property
    def audio_format(self) -> AudioFormat | None:
        """The format that it names; None for a range and for other types."""
        known = AUDIO_TYPES.get(self.name)
        return "opus" if known == "ogg" and "opus" in self.codecs else known


def media_ranges(request: Request) -> list[MediaRange]:
    """The entries of a request's Accept header, in their order; of a request without one, what takes everything."""
    header = request.headers.get("accept") or "*/*"
    ranges = []
    for part in header.lower().split(",")[:MAX_RANGES]:
        name, _, parameters = part.partition(";")
        quality = re.search(r"(?:^|;)\s*q=([01](?:\.\d{0,3})?)\s*(?:;|$)", parameters)
        codecs = re.search(r"(?:^|;)\s*codecs=([^;]*)", parameters)
        value = float(quality[1]) if quality else 1.0
        ranges.append(MediaRange(name.strip(), codecs[1] if codecs else "", value))
    return ranges


def wanted(request: Request, usual: Kind, *others: Kind) -> Kind:
    """Return the kind of answer that `?format=` or Accept asks for, of those that a route has; `*/*` is the usual one.

    An Accept that names JSON among other types, and takes everything, gets what the route usually answers.
    Raises HttpProblem 422 for a `format` that the route does not have.
    """
    offered = [usual, *(kind for kind in KINDS if kind in others and kind != usual)]
    asked = request.query_params.get("format")
    if asked is not None:
        if asked not in offered:
            problem = f"format: '{printable(asked)}' is not one of {', '.join(offered)}"
            raise HttpProblem(422, "invalid_request", f"{problem}; that of the audio is a field of the body")
        return next(kind for kind in offered if kind == asked)
    ranges = media_ranges(request)
    takes_all = max((one.quality for one in ranges if one.name == "*/*"), default=0.0)
    qualities = {kind: _quality_of_kind(ranges, kind) for kind in offered}
    qualities[usual] = max(qualities[usual], takes_all)
    if usual != "json" and takes_all > 0 and not _names_json_only(ranges):
        qualities.pop("json", None)  # tools list JSON before much else by habit
    best = max(qualities, key=lambda kind: qualities[kind])  # the first of equals
    return best if qualities[best] > 0 else usual


def _names_json_only(ranges: list[MediaRange]) -> bool:
    """Return whether nothing but JSON, and whatever else there may be, is named."""
    return all(one.name == "*/*" or one.name.startswith(MEDIA_RANGES["json"]) for one in ranges)


def _quality_of_kind(ranges: list[MediaRange], kind: Kind) -> float:
    return max((one.quality for one in ranges if one.name.startswith(MEDIA_RANGES[kind])), default=0.0)


def wanted_format(request: Request, usual: AudioFormat) -> AudioFormat:
    """The format that Accept asks for, of a request that names none; the usual one where it is liked as well.

    Raises HttpProblem 406 where all audio types that are named are unknown here.
    """
    ranges = [one for one in media_ranges(request) if one.quality > 0]
    best, quality = usual, _quality_of_format(ranges, usual)
    for one in ranges:
        if one.audio_format is not None and one.quality > quality:
            best, quality = one.audio_format, one.quality
    if quality == 0.0 and any(one.name.startswith("audio/") for one in ranges):
        raise _not_acceptable(f"no audio of the types in Accept is made here; there are {', '.join(_known_types())}")
    return best


def check_acceptable(request: Request, audio_format: AudioFormat) -> None:
    """Raise HttpProblem 406 where Accept names audio types, and a file of this format is none of them."""
    ranges = [one for one in media_ranges(request) if one.quality > 0]
    if any(one.name.startswith("audio/") for one in ranges) and _quality_of_format(ranges, audio_format) == 0.0:
        raise _not_acceptable(f"the song is a file of the format {audio_format}, which is none of the types in Accept")


def _quality_of_format(ranges: list[MediaRange], audio_format: AudioFormat) -> float:
    fits = [one.quality for one in ranges if one.name in ANY_AUDIO or _names(one, audio_format)]
    return max(fits, default=0.0)


def _names(one: MediaRange, audio_format: AudioFormat) -> bool:
    """Return whether an entry names a format. A plain `audio/ogg` is every Ogg file, and `audio/wav` every WAV file."""
    known = AUDIO_TYPES.get(one.name)
    if known == "ogg" and audio_format == "opus":
        return not one.codecs or one.audio_format == "opus"
    return one.audio_format == ("wav" if audio_format == "wav32" else audio_format)


def _known_types() -> list[str]:
    return [next(name for name, known in AUDIO_TYPES.items() if known == one) for one in ("wav", "mp3", "flac", "ogg")]


def _not_acceptable(detail: str) -> HttpProblem:
    return HttpProblem(406, "not_acceptable", f"{detail}; `Accept: */*` takes any, and `format` in the request decides")
