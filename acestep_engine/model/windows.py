"""Windows of time, all of one length: on a CPU every new length costs each convolution a kernel, made at first use."""

from math import ceil


def equal_windows(start: int, stop: int, longest: int, multiple: int = 1) -> list[tuple[int, int]]:
    """[start, stop), not empty, in as few windows of at most `longest` as can be, all of one length.

    The length is a `multiple`, as `longest` has to be, unless there is one window. The last overlaps the one before it
    by what the length does not divide.
    """
    count = ceil((stop - start) / longest)
    length = min(ceil((stop - start) / count / multiple) * multiple, stop - start)
    firsts = (min(start + index * length, stop - length) for index in range(count))
    return [(first, first + length) for first in firsts]


def with_halo(start: int, stop: int, halo: int, length: int) -> tuple[int, int]:
    """[start, stop) of [0, length) with `halo` on either side, or where that would leave it, more on the other side.

    So windows of one length stay of one length, unless all of [0, length) is shorter.
    """
    width = min(stop - start + 2 * halo, length)
    first = min(max(0, start - halo), length - width)
    return first, first + width
