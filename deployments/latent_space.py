"""The identity of a latent space: latents mean something only to models of the same autoencoder."""

import hashlib
from pathlib import Path

from acestep_engine.checkpoint import AUTOENCODER


def latent_space_of(checkpoint: Path) -> str:
    """Return the id of the space that a checkpoint's latents lie in: a digest of its autoencoder's files.

    A model's name would not do: two names may have the same weights, and one name other weights after a while. Takes a
    second for the published checkpoint. Raises OSError.
    """
    digest = hashlib.sha256()
    folder = checkpoint / AUTOENCODER
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
