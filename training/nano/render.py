"""A piece to stereo sound. `python -m training.nano.render SEED OUT.wav` prints its caption and writes it."""

import argparse
from pathlib import Path

import numpy as np
import soundfile

from acestep_engine.params import MODEL_SAMPLE_RATE_HZ as SAMPLE_RATE_HZ
from training.nano.compose import compose
from training.nano.effects import Stereo, limit, pan_gains, reverberate
from training.nano.instruments import INSTRUMENTS, drums, layer, sample
from training.nano.instruments.oscillators import Wave
from training.nano.piece import Part, Piece
from training.nano.words import caption

_LEVEL = 10.0 ** (-18.0 / 20.0)  # root mean square of a whole piece


def render(piece: Piece) -> Stereo:
    """A piece to audio (2, N) float32 at 44.1 kHz, N = round(duration_s * 44100): -18 dBFS RMS, peak under 0.9."""
    length = round(piece.duration_s * SAMPLE_RATE_HZ)
    dry, send = np.zeros((2, length), dtype=np.float32), np.zeros(length, dtype=np.float32)
    for part in piece.parts:
        own = np.zeros(length, dtype=np.float32)
        if part.role == "drums":
            _play_drums(part, dry, own)
        else:
            _play_notes(part, own)
            left, right = pan_gains(part.pan)
            dry[0] += part.gain * left * own
            dry[1] += part.gain * right * own
        send += part.gain * part.send * own
    mix = dry + reverberate(send, piece.reverb)
    mix -= np.mean(mix, axis=1, keepdims=True)
    fade = min(length, SAMPLE_RATE_HZ // 50)
    mix[:, -fade:] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
    return limit(mix * np.float32(_LEVEL / max(float(np.sqrt(np.mean(mix**2))), 1e-6)))


def _play_notes(part: Part, track: Wave) -> None:
    """Add the notes of a part to a mono track (N,): each is held, then let go."""
    release = round(INSTRUMENTS[part.instrument].release_s * SAMPLE_RATE_HZ)
    falling = np.square(np.linspace(1.0, 0.0, release, dtype=np.float32))
    for note in part.notes:
        wave = sample(part.instrument, note.pitch, layer(note.velocity))
        start = round(note.start_s * SAMPLE_RATE_HZ)
        held = min(round(note.duration_s * SAMPLE_RATE_HZ), len(wave), len(track) - start)
        end = min(held + release, len(wave), len(track) - start)
        gain = np.float32(note.velocity)
        track[start : start + held] += gain * wave[:held]
        track[start + held : start + end] += gain * wave[held:end] * falling[: end - held]


def _play_drums(part: Part, dry: Stereo, track: Wave) -> None:
    """Add the strokes of a kit to a stereo mix (2, N), each from its place, and to a mono track (N,) for the reverb."""
    for note in part.notes:
        wave = sample(part.instrument, note.pitch, layer(note.velocity))
        start = round(note.start_s * SAMPLE_RATE_HZ)
        stroke = np.float32(note.velocity) * wave[: len(track) - start]
        left, right = pan_gains(drums.PANS[note.pitch])
        dry[0, start : start + len(stroke)] += np.float32(part.gain * left) * stroke
        dry[1, start : start + len(stroke)] += np.float32(part.gain * right) * stroke
        if note.pitch != drums.KICK:  # a kick in the room is mud
            track[start : start + len(stroke)] += stroke


def main(arguments: list[str] | None = None) -> None:
    """Render the piece of a seed to a file; `arguments` None are those of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    piece = compose(options.seed)
    print(caption(piece, np.random.Generator(np.random.PCG64(options.seed))))
    soundfile.write(options.out, render(piece).T, SAMPLE_RATE_HZ)


if __name__ == "__main__":
    main()
