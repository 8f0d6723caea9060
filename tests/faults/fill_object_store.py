"""Run in a process of its own: fills the object store of the Ray that runs here, until its standard input ends."""

import sys

import numpy as np
import ray

PART = 10 * 2**20


def main(most: int) -> None:
    ray.init(address="auto", log_to_driver=False)
    held = []
    total = ray.cluster_resources()["object_store_memory"]
    for _ in range(most // PART):  # what is read stays mapped, so that it cannot be written out to the disk
        held.append(ray.get(ray.put(np.zeros(PART, dtype=np.uint8))))
        if len(held) * PART >= total:
            break
    print(f"full: {len(held) * PART} of {total:.0f} bytes are held", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]))
