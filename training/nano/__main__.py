"""Train the nano model from nothing: `python -m training.nano --work DIR`.

Stopped, by Ctrl-C or a signal, and started again, it goes on where it was. At the end a checkpoint lies in DIR/nano.
"""

import argparse
from pathlib import Path

from acestep_engine.devices import pick_device
from training.nano.export import assemble
from training.nano.stages import CORES, PIECES, run_stages, stages


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
    run_stages(stages(options.work, options.hours, options.pieces, learning, processes))
    parts = [options.work / name for name in ("autoencoder", "vocoder", "transformer")]
    checkpoint = options.work / "nano"
    size = assemble(parts, checkpoint)
    print(f"{checkpoint}: {size / 1e6:.1f} MB. Measure it: python -m training.nano.evaluate --model {checkpoint}")


if __name__ == "__main__":
    main()
