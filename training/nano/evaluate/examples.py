"""Songs for the model card: `python -m training.nano.evaluate.examples` writes each as Ogg Vorbis and as a picture."""

import argparse
from pathlib import Path

from acestep_engine.encode import encode_audio
from acestep_engine.params import GenerationParams
from training.nano.evaluate.clips import png, spectrogram_pixels
from training.nano.evaluate.maker import INSTRUMENTAL, NANO, Maker

FOLDER = Path("training/nano/examples")
SEED, SONG_S = 1, 10.0

EXAMPLES = {
    "folk-guitar": "acoustic guitar, folk, calm, no drums, major key, 92 bpm",
    "jazz-piano": "piano, swing jazz, happy, drums, major key, 132 bpm",
    "house-synth": "synth, house, energetic, with drums, minor key, 124 bpm",
    "reggae-organ": "organ, reggae, warm, drums, major key, 80 bpm",
    "classical-strings": "strings, classical, sad, no drums, minor key, 72 bpm",
    "funk-brass": "brass, funk, energetic, drums, minor key, 120 bpm",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=NANO, help="nano, the bundled one, or a checkpoint folder (nano)")
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"({FOLDER})")
    options = parser.parse_args()
    maker = Maker.of(options.model)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, prompt in EXAMPLES.items():
        song = maker.make(GenerationParams(prompt, INSTRUMENTAL, SONG_S, SEED))
        (options.out / f"{name}.ogg").write_bytes(encode_audio(song.audio, "ogg", {"title": prompt}))
        (options.out / f"{name}.png").write_bytes(png(spectrogram_pixels(maker.heard(song))))
        print(f"{name}: {prompt}", flush=True)


if __name__ == "__main__":
    main()
