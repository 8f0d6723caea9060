"""What the TextEncoder made of prompts and lyrics: asked of it, or kept from an earlier song."""

from typing import Any

from ray.serve.handle import DeploymentHandle, DeploymentResponse

from acestep_engine.caching import LruCache
from acestep_engine.conditioning import EncodeRequest
from acestep_engine.params import ModelSpec

KEPT = 32  # of up to 1.6 MB each with the published text encoder


class Encodings:
    """A Conditioning is never read here: its response travels to the Generator by reference.

    The same words with another seed need no call. Only what a song was made with is kept, so that nobody waits for a
    call that another one's cancel ends.
    """

    def __init__(self, text_encoder: DeploymentHandle[Any]) -> None:
        self._encode = text_encoder.options(method_name="encode")
        self._kept: LruCache[tuple[ModelSpec, EncodeRequest], DeploymentResponse[Any]] = LruCache(KEPT)

    def get(self, spec: ModelSpec, request: EncodeRequest) -> DeploymentResponse[Any]:
        """The response of a call, perhaps of an earlier one."""
        kept = self._kept.get((spec, request))
        return self._encode.remote(spec, request) if kept is None else kept

    def keep(self, spec: ModelSpec, request: EncodeRequest, response: DeploymentResponse[Any]) -> None:
        """A song was made with this."""
        self._kept.put((spec, request), response)

    def forget(self) -> None:
        """A song was lost, perhaps because a node is gone that held some of them."""
        self._kept.clear()
