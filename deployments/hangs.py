"""The end of a replica that can do no more work."""

import faulthandler
import logging
import os
import sys

logger = logging.getLogger("ray.serve")


def end_process() -> None:
    """End this process at once: callers see it, and Serve starts another.

    A health check that fails would not do: Serve lets an unhealthy replica finish its calls first, and one that hangs
    never does.
    """
    logging.shutdown()
    os._exit(1)


def end_hanging_replica(reason: str) -> None:
    """End this process, and leave in its log where each of its threads is."""
    logger.error("this replica ends: %s", reason)
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback(sys.__stderr__)
    end_process()
