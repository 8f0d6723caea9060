"""The part of the settings that says which model runs."""

from deployments.models import ModelChoice
from serve_app.settings import Settings


def model_choice(settings: Settings) -> ModelChoice:
    """Return what the settings say about models."""
    return ModelChoice(
        model=settings.model,
        checkpoints=settings.checkpoints,
        checkpoint_dir=settings.checkpoint_dir,
        download=settings.download,
        bf16=settings.bf16,
        torch_compile=settings.torch_compile,
        cuda_graphs=settings.cuda_graphs,
        cpu_offload=settings.cpu_offload,
        overlapped_decode=settings.overlapped_decode,
    )
