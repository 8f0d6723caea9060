"""Train the nano model from nothing: `python -m training.nano --work DIR`.

Stopped, by Ctrl-C or a signal, and started again, it goes on where it was. At the end a checkpoint lies in DIR/nano.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from acestep_engine.devices import pick_device
from training.nano.compose import FIRST_HELD_OUT_SEED
from training.nano.export import assemble

PIECES, HELD_OUT_PIECES = 8_000, 100  # that the transformer learns from, and is judged by
PIECES_PER_RECORDING = 8  # the autoencoder and the vocoder need fewer
CORES = len(os.sched_getaffinity(0))
TORCHRUN = ("torch.distributed.run", "--standalone")  # whose port is a free one
# Of the hours that learning takes. The rest, data and latents, takes half an hour of two cores.
AUTOENCODER_SHARE, VOCODER_SHARE, TRANSFORMER_SHARE = 0.08, 0.30, 0.62


@dataclass(frozen=True)
class Stage:
    """A module to run with arguments, in one process or in a team of several."""

    title: str
    module: str
    arguments: tuple[str, ...]
    processes: int = 1

    @property
    def command(self) -> list[str]:
        team = (*TORCHRUN, "--nproc-per-node", str(self.processes), "-m") if self.processes > 1 else ()
        return [sys.executable, "-m", *team, f"training.nano.{self.module}", *self.arguments]

    def run(self) -> int:
        """Its exit status."""
        threads = {"OMP_NUM_THREADS": str(CORES // self.processes)} if self.processes > 1 else {}
        return subprocess.run(self.command, env=os.environ | threads).returncode


def stages(
    work: Path, hours: float, pieces: int = PIECES, learning: tuple[str, ...] = (), processes: int = 1
) -> tuple[Stage, ...]:
    """All that there is to do, in order; each does nothing that it has done before.

    `pieces`: of music, for the transformer; `learning`: more arguments for trainers; `processes`: those that train the
    transformer.
    """
    data, latents = str(work / "recordings"), work / "latents"
    codec, voice, model = (str(work / name) for name in ("autoencoder", "vocoder", "transformer"))

    def plan(share: float) -> tuple[str, ...]:
        return "--minutes", f"{60 * hours * share:g}", *learning

    encode = ("--autoencoder", codec, "--data")
    learn = ("--data", str(latents), "--out", model)
    held_out = ("--first", str(FIRST_HELD_OUT_SEED), "--pieces", str(HELD_OUT_PIECES))
    recordings = str(-(-pieces // PIECES_PER_RECORDING))
    return (
        Stage("render recordings", "codec_data", ("--data", data, "--pieces", recordings)),
        Stage("autoencoder", "autoencoder", ("--data", data, "--out", codec, *plan(AUTOENCODER_SHARE))),
        Stage("vocoder", "vocoder", ("--data", data, "--out", voice, "--through", codec, *plan(VOCODER_SHARE))),
        Stage("render latents", "latents", (*encode, str(latents / "train"), "--pieces", str(pieces))),
        Stage("render held-out latents", "latents", (*encode, str(latents / "held-out"), *held_out)),
        Stage("transformer", "transformer", (*learn, *plan(TRANSFORMER_SHARE)), processes),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.nano", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="data, states, logs; about 3 GB")
    parser.add_argument("--hours", type=float, default=10.0, help="that learning may take (10)")
    parser.add_argument("--pieces", type=int, default=PIECES, help=f"of music to learn from ({PIECES})")
    parser.add_argument("--device", help="cpu or cuda (a GPU if there is one)")
    parser.add_argument("--scale", type=int, default=1, help="times as much in every step: 8 for a large GPU (1)")
    options = parser.parse_args()
    learning = ("--scale", str(options.scale), *(() if options.device is None else ("--device", options.device)))
    processes = min(2, CORES) if pick_device(options.device).type == "cpu" else 1
    for stage in stages(options.work, options.hours, options.pieces, learning, processes):
        print(f"--- {stage.title}", flush=True)
        if (code := stage.run()) != 0:
            sys.exit(f"{stage.title} ended with {code}; the same command goes on from here")
    parts = [options.work / name for name in ("autoencoder", "vocoder", "transformer")]
    checkpoint = options.work / "nano"
    size = assemble(parts, checkpoint)
    print(f"{checkpoint}: {size / 1e6:.1f} MB. Measure it: python -m training.nano.evaluate --model {checkpoint}")


if __name__ == "__main__":
    main()
