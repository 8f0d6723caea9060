"""Convolutions on a GPU by cuDNN, and by torch's own kernels where cuDNN has none."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from acestep_engine.devices import is_lost, is_out_of_memory

# Of cuDNN 8 and 9, and of torch where none of cuDNN's kernels takes a convolution as it is.
CUDNN_WORDS = ("cuDNN", "CUDNN_STATUS", "unable to find an engine")

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Convolving:
    """Runs the work of one model, without cuDNN once it has failed. Work that raises must have changed nothing."""

    def __init__(self) -> None:
        self._uses_cudnn = True

    def __call__(self, work: Callable[[], T], device: torch.device) -> T:
        """Return what `work` answers, on whose `device` it runs."""
        if not self._uses_cudnn:
            return _without_cudnn(work)
        try:
            return work()
        except RuntimeError as error:
            is_cudnns = any(words in str(error) for words in CUDNN_WORDS)
            if not is_cudnns or is_out_of_memory(error) or is_lost(error, device):
                raise
            failure = error.with_traceback(None)  # it holds the tensors of half the work
        answer = _without_cudnn(work)
        self._uses_cudnn = False
        logger.warning("cuDNN fails, and convolutions run without it from now on: %s", failure)
        return answer


def _without_cudnn(work: Callable[[], T]) -> T:
    with torch.backends.cudnn.flags(enabled=False):
        return work()
