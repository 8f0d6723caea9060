"""Base64 text of any size is cut out and decoded in pieces, as if it were done at once."""

import base64
import json
import re
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app import large_text

PIECES = st.sampled_from([4, 8, 12])


@given(
    audio=st.binary(max_size=60),
    line=st.integers(1, 20),
    end=st.sampled_from(["\n", "\r\n"]),
    piece=PIECES,
    at=st.booleans(),
)
def test_audio_in_json_comes_out_as_it_was_written(audio: bytes, line: int, end: str, piece: int, at: bool) -> None:
    written = base64.b64encode(audio).decode()
    lines = end.join(written[start : start + line] for start in range(0, len(written), line))
    fields = {"prompt": 'says "audio_base64": twice', "audio_base64": lines, "lyrics": "la"}
    text = json.dumps(fields if at else dict(reversed(fields.items())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_text, "PIECE", piece)
        rest, found = large_text.without_json_audio(text.replace("/", "\\/").encode())
        assert found is not None
        assert large_text.decoded(large_text.without_line_ends(found)) == audio
    assert json.loads(rest) == fields | {"audio_base64": ""}


@given(audio=st.binary(max_size=60), piece=PIECES, at=st.booleans())
def test_audio_in_a_form_comes_out_as_it_was_written(audio: bytes, piece: int, at: bool) -> None:
    written = base64.b64encode(audio).decode()
    fields = {"audio_base64": written, "my_audio_base64": "x"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_text, "PIECE", piece)
        rest, found = large_text.without_form_audio(
            urlencode(fields if at else dict(reversed(fields.items()))).encode()
        )
    assert found == written
    assert sorted(rest.split(b"&")) == [b"audio_base64=", b"my_audio_base64=x"]


@pytest.mark.parametrize(
    "text", ['{"audio_base64": 5}', '{"audio_base64": "a\\"b"}', '{"audio_base64": "never ends', "{}"]
)
def test_what_holds_no_audio_stays_as_it_is(text: str) -> None:
    assert large_text.without_json_audio(text.encode()) == (text.encode(), None)
    assert large_text.without_form_audio(text.encode()) == (text.encode(), None)


QUARTETS = st.lists(
    st.text(alphabet="Ab0+/-\u00e9", min_size=4, max_size=4) | st.sampled_from(["Ab==", "A0b=", "A=b0"])
)


@given(letters=QUARTETS.map("".join), piece=PIECES)
def test_only_base64_is_decoded_whatever_the_pieces(letters: str, piece: int) -> None:
    """Of whole quartets, as it is checked before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_text, "PIECE", piece)
        try:
            expected = base64.b64decode(letters, validate=True)
        except ValueError:
            with pytest.raises(ValueError, match=r"."):
                large_text.decoded(letters)
        else:
            assert large_text.decoded(letters) == expected
        foreign = re.search("[^A-Za-z0-9+/=]", letters)
        assert large_text.foreign_letter(letters) == (None if foreign is None else foreign.start())
