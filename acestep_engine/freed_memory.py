"""What the C library does with memory that was freed (glibc only). No torch."""

import ctypes
from contextlib import suppress

# Of glibc's malloc.h and arena.c.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
LARGEST_MMAP_THRESHOLD = 2**25
THREAD_HEAP_BYTES = 2**26
KEPT_BYTES = 2**30
ARENAS = 2  # heaps of their own for threads other than the first; each keeps what was freed in it


def keep_freed_memory() -> None:
    """Have the C library keep large blocks that were freed, for the next step to use again (glibc only).

    By default it gives each back to the system, and a CPU spends up to a third of a forward on getting them again.
    Threads other than the first have heaps of their own, which it gives back as soon as they are empty but for less
    than the padding.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_TOP_PAD, THREAD_HEAP_BYTES)
    mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    mallopt(M_ARENA_MAX, ARENAS)


def give_back_freed_memory() -> None:
    """Have the C library give all that was freed back to the system (glibc only), in every heap.

    What it keeps between two songs grows with their number otherwise, because songs of other lengths do not fit the
    gaps. The next song gets memory anew, which takes about a tenth of a second for a small model: call it now and then.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
