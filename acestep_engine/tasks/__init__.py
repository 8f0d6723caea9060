"""What can be made of noise or of a source, each as a value that the engine advances forward by forward."""

import torch
from torch import Tensor

from acestep_engine.errors import ParameterError
from acestep_engine.params import SOURCE_TASKS, GenerationParams
from acestep_engine.tasks import denoise, repaint
from acestep_engine.tasks.edit import edit
from acestep_engine.tasks.state import TaskState


def begin(params: GenerationParams, source: Tensor | None, device: torch.device) -> TaskState:
    """The first state of a request. All its noise comes from generators of its own, of `seed` and `retake_seed`.

    `source` are latents (8, 16, T); the tasks that need them take their length from them. Latents and noise are float32
    whatever the precision of the model: rounded after each step, they would add up what neighbours change.
    Raises ParameterError for a missing source, and for parameters that do not suit it.
    """
    generator = torch.Generator(device=device).manual_seed(params.seed)
    retake_generator = torch.Generator(device=device).manual_seed(params.retake_seed)
    if params.task not in SOURCE_TASKS:
        if params.task == "retake":
            return denoise.retake(params, generator, retake_generator)
        return denoise.from_noise(params, generator)
    if source is None:
        raise ParameterError("src_audio", f"{params.task} needs a source")
    source = source.to(device, torch.float32)
    match params.task:
        case "audio2audio":
            return denoise.from_reference(params, source, generator)
        case "repaint":
            return repaint.repaint(params, source, generator, retake_generator)
        case "extend":
            return repaint.extend(params, source, generator, retake_generator)
        case "edit":
            return edit(params, source, retake_generator)
    raise AssertionError(params.task)
