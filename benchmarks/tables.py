"""Plain text tables."""

import math
from collections.abc import Sequence


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table, so that it can be pasted into benchmarks/README.md as it is."""
    cells = [list(columns), *([_show(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    print(f"### {title}\n")
    for number, row in enumerate(cells):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print(flush=True)


def _show(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percentile(values: Sequence[float], percent: float) -> float:
    """Of few values the nearest one above: the 95th percent of 20 values is the second largest."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(percent / 100 * len(ordered)) - 1)]
