"""What there is to do for the nano model, in order: processes that may be stopped, and that do nothing twice."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from training.nano.compose import FIRST_HELD_OUT_SEED

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

    @property
    def environment(self) -> dict[str, str]:
        """What it has beside this process's own."""
        return {"OMP_NUM_THREADS": str(CORES // self.processes)} if self.processes > 1 else {}


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


def run_stages(some: Iterable[Stage]) -> None:
    """Run them one after the other, and end this process if one fails or a signal comes.

    SIGTERM, SIGINT and SIGHUP end the stage first, which saves what it has learnt, and then this process.
    """
    with _passing_on_signals() as running:
        for stage in some:
            print(f"--- {stage.title}", flush=True)
            code = running.wait_for(stage)
            if running.stopped_by is not None:
                print(f"{stage.title} was stopped; the same command goes on from here", file=sys.stderr)
                sys.exit(128 + running.stopped_by)
            if code != 0:
                sys.exit(f"{stage.title} ended with {code}; the same command goes on from here")


class _Running:
    """The stage that runs, and the signal that it was stopped by."""

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def wait_for(self, stage: Stage) -> int:
        """Its exit status."""
        # In a session of its own: of a terminal's Ctrl-C it and each process of its team would hear twice.
        self._process = subprocess.Popen(stage.command, env=os.environ | stage.environment, start_new_session=True)
        if self.stopped_by is not None:
            self._process.terminate()
        return self._process.wait()

    def stop(self, number: int, frame: object) -> None:
        """As a handler of signals."""
        self.stopped_by = number
        if self._process is not None:
            self._process.terminate()


@contextmanager
def _passing_on_signals() -> Iterator[_Running]:
    running = _Running()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, running.stop)
    try:
        yield running
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
