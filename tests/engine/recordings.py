"""Files as phones and browsers record them, made by the optional library."""

from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np

from acestep_engine.audio import FloatArray

RATE_HZ = 48_000

# The library's container and codec, and the container's options.
RECORDINGS = {
    "m4a": ("ipod", "aac", {}),
    "m4a whose index comes first": ("mp4", "aac", {"movflags": "faststart"}),
    "mp4 of Safari's recorder": ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "mp4 of lossless audio": ("mp4", "alac", {}),
    "mp4 of opus": ("mp4", "libopus", {}),
    "mov of pcm": ("mov", "pcm_s16le", {}),
    "3gp": ("3gp", "aac", {}),
    "webm of opus": ("webm", "libopus", {"live": "1"}),
    "webm of vorbis": ("webm", "vorbis", {}),
    "mka of flac": ("matroska", "flac", {}),
    "mka of pcm floats": ("matroska", "pcm_f32le", {}),
    "aac": ("adts", "aac", {}),
    "caf of pcm": ("caf", "pcm_s24be", {}),
    "caf of lossless audio": ("caf", "alac", {}),
    "ogg of flac": ("ogg", "flac", {}),
}


def tones(seconds: float, channels: int = 2) -> FloatArray:
    """A signal (channels, n) whose channels differ."""
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return np.stack([0.5 * np.sin(2 * np.pi * 220 * (2 + channel) * t) for channel in range(channels)]).astype("f4")


def recording(
    kind: str = "m4a", samples: FloatArray | None = None, layout: str = "stereo", rate_hz: int = RATE_HZ, video: int = 0
) -> bytes:
    """A file as a phone or browser would make it, of two seconds unless `samples` are given."""
    import av

    container, codec, options = RECORDINGS[kind]
    samples = tones(2) if samples is None else samples
    with NamedTemporaryFile() as file, av.open(file.name, "w", format=container, options=options) as output:
        picture_stream = output.add_stream("mpeg4", rate=5) if video else None
        if picture_stream is not None:
            picture_stream.width = picture_stream.height = 64
            picture_stream.pix_fmt = "yuv420p"
        stream = output.add_stream(codec, rate=rate_hz, layout=layout, options={"strict": "experimental"})
        for index in range(video):
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), index, np.uint8), format="rgb24")
            output.mux(picture_stream.encode(picture))
        if picture_stream is not None:
            output.mux(picture_stream.encode())
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate = rate_hz
        fifo = av.AudioFifo()
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate_hz)
        for converted in resampler.resample(frame):
            fifo.write(converted)
        while (part := fifo.read(stream.codec_context.frame_size or 1_024, partial=True)) is not None:
            output.mux(stream.encode(part))
        output.mux(stream.encode())
        output.close()
        return Path(file.name).read_bytes()
