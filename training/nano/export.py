"""Put a checkpoint together from what was trained: `python -m training.nano.export --out DIR PART [PART ...]`.

Each PART is a folder that a trainer has written; of a component that several hold the last is taken.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from acestep_engine.checkpoint import COMPONENTS, LYRIC_VOCABULARY, NANO_PATH

MOST_BYTES = 32_000_000


def assemble(parts: Sequence[Path], out: Path) -> int:
    """Copy the components of a checkpoint to `out`, in place of those there; how many bytes it has.

    Raises FileNotFoundError for a component that no part holds, ValueError if all are larger than 32 MB.
    """
    found = {}
    for component in COMPONENTS:
        holders = [part / component for part in parts if (part / component / "config.json").is_file()]
        if not holders:
            raise FileNotFoundError(f"none of {', '.join(map(str, parts))} holds {component}")
        found[component] = holders[-1]
    total = sum(file.stat().st_size for folder in found.values() for file in folder.iterdir())
    if total > MOST_BYTES:
        raise ValueError(f"the components have {total:,} bytes, more than {MOST_BYTES:,}")
    for component, folder in found.items():
        target = out / component
        if target.exists():
            shutil.rmtree(target)
        shutil.copytree(folder, target)
    vocabulary = out / LYRIC_VOCABULARY
    if not vocabulary.exists():
        shutil.copyfile(NANO_PATH / LYRIC_VOCABULARY, vocabulary)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=NANO_PATH)
    options = parser.parse_args()
    print(f"{options.out}: {assemble(options.parts, options.out) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
