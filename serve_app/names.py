"""Names that requests may use for our fields, names that are ignored, and hints for names that are neither.

Clients of other ACE-Step servers send these. The request model itself knows one name for each field.
"""

import difflib
from collections.abc import Collection, Mapping

ALIASES: Mapping[str, str] = {
    "genre": "prompt",
    "tags": "prompt",
    "caption": "prompt",
    "duration": "audio_duration",
    "seed": "manual_seeds",
    "seeds": "manual_seeds",
    "actual_seeds": "manual_seeds",
    "infer_steps": "infer_step",
    "num_inference_steps": "infer_step",
    "steps": "infer_step",
    "audio_format": "format",
    "cfg_scale": "guidance_scale",
    "lora_scale": "lora_weight",
    "src_audio_path": "src_audio",
}

# What a request may carry although it means nothing here. An answer lists what it carried under `ignored_fields`.
IGNORED = frozenset(
    {
        "timecosts",
        "audio_path",
        "checkpoint_path",
        "bf16",
        "torch_compile",
        "device_id",
        "cpu_offload",
        "overlapped_decode",
        "output_path",
        "model_name",
        "lyric_strength",
        "vocal_suppression",
    }
)

# Names that other services have for our fields, but that are not read: to a hint for the person who sent them.
OTHER_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("style", "styles", "description", "text", "music_prompt"), "prompt"),
    **dict.fromkeys(("lyric", "words"), "lyrics"),
    **dict.fromkeys(("output_format", "response_format", "file_format", "codec"), "format"),
    **dict.fromkeys(("length", "audio_length", "song_length", "duration_s", "seconds"), "audio_duration"),
    **dict.fromkeys(("step", "num_steps", "inference_steps", "sampling_steps", "diffusion_steps"), "infer_step"),
    **dict.fromkeys(("cfg", "cfg_strength", "guidance", "cfg_guidance_scale", "text_guidance"), "guidance_scale"),
    **dict.fromkeys(("sampler", "sampler_name", "scheduler", "infer_method"), "scheduler_type"),
    **dict.fromkeys(("random_seed", "noise_seed"), "manual_seeds"),
    **dict.fromkeys(("language", "lang", "lyrics_language", "vocals_language"), "vocal_language"),
    **dict.fromkeys(("batch", "n", "num_songs", "num_outputs", "num_samples"), "batch_size"),
    **dict.fromkeys(("lora", "lora_name", "lora_id"), "lora_name_or_path"),
    **dict.fromkeys(("denoise", "strength", "audio_cover_strength"), "ref_audio_strength"),
    **dict.fromkeys(("webhook", "webhook_url", "callback"), "callback_url"),
    **dict.fromkeys(("task_type", "mode"), "task"),
}
# Names of what is asked for in another way: to how.
OTHER_WAYS: Mapping[str, str] = {
    **dict.fromkeys(
        ("audio", "reference_audio", "ref_audio", "input_audio", "audio_prompt", "source_audio"),
        "a file is sent as the part audio_file, or as base64 in audio_base64",
    ),
    **dict.fromkeys(
        ("instrumental", "is_instrumental", "make_instrumental"), "for a song without words send blank lyrics"
    ),
    **dict.fromkeys(
        ("bpm", "tempo", "key", "keyscale", "key_scale", "time_signature", "timesignature"),
        "say it in prompt, as one of its tags",
    ),
    "negative_prompt": "this model takes none",
}
SPELLING_CUTOFF = 0.8  # names less alike than this are other words, not misspelt ones


def hint(name: str, fields: Collection[str]) -> str | None:
    """Say what an unknown field's name may stand for; None where that would be a guess."""
    sent = name.lower()
    if OTHER_NAMES.get(sent) in fields:
        return f"the name here is {OTHER_NAMES[sent]}"
    if sent in OTHER_WAYS and "prompt" in fields:
        return OTHER_WAYS[sent]
    known = {field: field for field in fields} | {alias: ours for alias, ours in ALIASES.items() if ours in fields}
    near = difflib.get_close_matches(sent, known, n=1, cutoff=SPELLING_CUTOFF)
    return f"did you mean {known[near[0]]}?" if near else None
