"""From a request to its songs: what it left open is decided, and what does not go together is refused."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from acestep_engine.params import (
    LATENT_RATE_HZ,
    MAX_DURATION_S,
    MAX_LATENT_FRAMES,
    SOURCE_TASKS,
    Adapter,
    AudioFormat,
    GenerationParams,
    Task,
    latent_frames,
)
from deployments.messages import RETAKE_SEED_TASKS, json_seed
from serve_app.fields import MIN_DURATION_S, FieldProblem, InvalidRequestError, invalid
from serve_app.loras import name_of
from serve_app.schemas import GenerateRequest
from serve_app.sources import AUDIO_FILE, FILE_FIELDS, JOB_FIELD, FoundSource, source_gone

DRAWN_DURATIONS_S = (30.0, MAX_DURATION_S)  # what an `audio_duration` of -1 is drawn from
DRAWN_SEEDS = 2**32  # drawn below this, as the published pipeline does; also exact in every JSON reader

SHORTEST_S = 1 / LATENT_RATE_HZ  # what can be made anew or added

EXTEND_VARIANCE = 1.0  # as the published interface has it: with less, what is added begins as half silence

FIELDS_OF_TASKS: Mapping[str, Sequence[Task]] = {
    "retake_seeds": RETAKE_SEED_TASKS,
    "retake_variance": ("retake", "repaint", "extend"),
    "repaint_start": ("repaint",),
    "repaint_end": ("repaint",),
    "left_extend_length": ("extend",),
    "right_extend_length": ("extend",),
    "edit_target_prompt": ("edit",),
    "edit_target_lyrics": ("edit",),
    "edit_n_min": ("edit",),
    "edit_n_max": ("edit",),
    "edit_n_avg": ("edit",),
}


@dataclass(frozen=True)
class ResolvedRequest:
    """A request with nothing left open. `request_json` is what a client POSTs to get the same music again."""

    songs: tuple[GenerationParams, ...]
    audio_format: AudioFormat
    request_json: dict[str, Any]


@dataclass(frozen=True)
class RouteRules:
    """What a route decides for fields that a request does not give, and how many songs a job may have."""

    max_songs: int = 1
    usual_task: Task = "text2music"
    defaults: Mapping[str, object] = field(default_factory=dict)


def resolve(
    request: GenerateRequest, found: FoundSource | None, rules: RouteRules, adapter: Adapter | None = None
) -> ResolvedRequest:
    """Decide what the request left open. Raises InvalidRequestError, and HttpProblem for a source that is gone."""
    if request.batch_size > rules.max_songs:
        raise invalid("batch_size", f"{request.batch_size} is over the limit of {rules.max_songs}")
    task = task_of(request, rules.usual_task)
    _check_fields(request, task)
    _check_source(task, found)
    request = _filled(request, task, found, rules.defaults)
    length_s, decided = _decide(request, task, found)
    seeds, retake_seeds = _seeds_of(request, task)
    song = replace(_song_of(request.model_copy(update=decided), task, length_s), adapter=adapter)
    songs = tuple(replace(song, seed=one, retake_seed=other) for one, other in zip(seeds, retake_seeds, strict=True))
    decided |= {"task": task, "audio2audio_enable": task == "audio2audio"} | _named(task, found)
    decided["manual_seeds"] = _listed(seeds, one_is_enough=task in RETAKE_SEED_TASKS)
    if task in RETAKE_SEED_TASKS:
        decided["retake_seeds"] = _listed(retake_seeds, one_is_enough=False)
    if adapter is not None:
        decided |= {"lora_name_or_path": name_of(adapter), "lora_weight": adapter.weight}
    request_json = request.model_dump(mode="json") | decided
    if "min_guidance_scale" not in request.model_fields_set and request.min_guidance_scale > request.guidance_scale:
        del request_json["min_guidance_scale"]  # given, it would be refused where there is a decay
    return ResolvedRequest(songs, request.format, request_json)


def task_of(request: GenerateRequest, usual_task: Task) -> Task:
    """The task that a request asks for; the usual one of its route where it names none. Raises InvalidRequestError."""
    asked = request.task if "task" in request.model_fields_set else usual_task
    if not request.audio2audio_enable or asked == "audio2audio":
        return asked
    if asked == "text2music":
        return "audio2audio"
    raise invalid("audio2audio_enable", f"stands for the task audio2audio, but task is {asked}")


def _check_fields(request: GenerateRequest, task: Task) -> None:
    """Refuse what would mean nothing: values for another task."""
    problems = [
        FieldProblem(name, f"belongs to {' and '.join(tasks)}, but the task is {task}: leave it out")
        for name, tasks in FIELDS_OF_TASKS.items()
        if task not in tasks and getattr(request, name) != GenerateRequest.model_fields[name].default
    ]
    if problems:
        raise InvalidRequestError(*problems)


def _check_source(task: Task, found: FoundSource | None) -> None:
    if found is None:
        if task in SOURCE_TASKS:
            ways = f"as this part, in audio_base64, or name one in ref_audio_input, src_audio or {JOB_FIELD}"
            raise invalid(AUDIO_FILE, f"is missing: {task} needs source audio; send it {ways}")
    elif task in SOURCE_TASKS:
        if not found.is_kept:
            raise source_gone(found.field)
    elif task == "retake":
        if found.song is None:
            problem = f"retake takes no audio, it repeats a song from its seed: name the song in {JOB_FIELD}"
            raise invalid(found.field, f"{problem}, or give its prompt, lyrics and manual_seeds")
    else:
        raise invalid(found.field, f"{task} takes no source; a task that does is {', '.join(SOURCE_TASKS)}")


def _filled(
    request: GenerateRequest, task: Task, found: FoundSource | None, defaults: Mapping[str, object]
) -> GenerateRequest:
    """With what the source's own request, or else the route, says of fields that are not given."""
    missing = {name: value for name, value in defaults.items() if name not in request.model_fields_set}
    if found is not None and found.song is not None:
        song = found.song
        known: dict[str, object] = {name: getattr(song, name) for name in ("prompt", "lyrics", "vocal_language")}
        if task == "retake":
            known["audio_duration"] = max(MIN_DURATION_S, song.duration_s)
        missing |= {name: value for name, value in known.items() if name not in request.model_fields_set}
        if task == "retake" and request.manual_seeds is None:
            missing["manual_seeds"] = (song.seed,)
    return request.model_copy(update=missing)


def _decide(request: GenerateRequest, task: Task, found: FoundSource | None) -> tuple[float, dict[str, Any]]:
    """How long the songs are, and fields that the request left to us. Raises InvalidRequestError."""
    if found is None or task not in SOURCE_TASKS:
        length_s = _asked_length_s(request)
        return length_s, {"audio_duration": length_s}
    length_s, decided = found.duration_s, dict[str, Any]()
    match task:
        case "repaint":
            _check_repaint(request, found)
        case "extend":
            if "retake_variance" not in request.model_fields_set:
                decided["retake_variance"] = EXTEND_VARIANCE
            length_s = _extended_s(request, found)
        case "edit":
            decided |= _edit_targets(request)
    return length_s, decided | {"audio_duration": round(length_s, 3)}


def _asked_length_s(request: GenerateRequest) -> float:
    """The length of a song without a source. Raises InvalidRequestError for one that is too short."""
    length_s = request.audio_duration
    if length_s <= 0:
        return round(secrets.SystemRandom().uniform(*DRAWN_DURATIONS_S), 2)
    if length_s < MIN_DURATION_S:
        limits = f"{MIN_DURATION_S:g} to {MAX_DURATION_S:g} s"
        raise invalid("audio_duration", f"{length_s:g} s is outside {limits} (or -1, which draws one)")
    return length_s


def _check_repaint(request: GenerateRequest, found: FoundSource) -> None:
    start_s, end_s = request.repaint_start, request.repaint_end
    start, stop = latent_frames(start_s), latent_frames(end_s)
    if stop > found.frames:
        raise invalid("repaint_end", f"{end_s:g} s is behind the end of the source, {found.duration_s:.2f} s")
    if start >= stop:
        shortest_s = 1 / LATENT_RATE_HZ
        raise invalid(
            "repaint_end", f"{end_s:g} s is not {shortest_s:.2g} s or more behind repaint_start, {start_s:g} s"
        )
    if request.retake_variance == 0:
        raise invalid("retake_variance", "0 would repaint nothing: at most 1, and over 0")


def _extended_s(request: GenerateRequest, found: FoundSource) -> float:
    left_s, right_s = request.left_extend_length, request.right_extend_length
    name = "right_extend_length" if right_s else "left_extend_length"
    added = latent_frames(left_s) + latent_frames(right_s)
    if added == 0:
        raise invalid(
            name, f"there is nothing to add: give seconds here or on the other side, {1 / LATENT_RATE_HZ:.2g} s or more"
        )
    room = max(0, MAX_LATENT_FRAMES - found.frames)
    if added > room:
        lasts = f"the source lasts {found.duration_s:.2f} s, so there is room for {room / LATENT_RATE_HZ:.2f} s"
        raise invalid(name, f"{left_s + right_s:g} s are too many: {lasts} of the {MAX_DURATION_S:g} s in all")
    return min(MAX_DURATION_S, left_s + found.duration_s + right_s)


def _edit_targets(request: GenerateRequest) -> dict[str, Any]:
    if request.edit_target_prompt is None and request.edit_target_lyrics is None:
        raise invalid("edit_target_prompt", "is missing: give this or edit_target_lyrics, or both")
    n_min, n_max = request.edit_n_min, request.edit_n_max
    if n_min > n_max:
        raise invalid("edit_n_max", f"{n_max:g} is under edit_n_min, which is {n_min:g}")
    if int(request.infer_step * n_min) == request.infer_step:
        raise invalid("edit_n_min", f"{n_min:g} leaves nothing to do of {request.infer_step} steps")
    if request.scheduler_type == "pingpong":
        raise invalid("scheduler_type", "'pingpong' edits nothing before edit_n_max: use 'euler' or 'heun' for edit")
    prompt, lyrics = request.edit_target_prompt, request.edit_target_lyrics
    return {
        "edit_target_prompt": request.prompt if prompt is None else prompt,
        "edit_target_lyrics": request.lyrics if lyrics is None else lyrics,
    }


def _seeds_of(request: GenerateRequest, task: Task) -> tuple[list[int], list[int]]:
    """The seeds and the retake seeds of the songs. Songs that differ in their retake seeds may share a seed."""
    given, songs = request.manual_seeds or (), request.batch_size
    if task not in RETAKE_SEED_TASKS:
        return _drawn(given, songs), [0] * songs
    seeds = _drawn(given, 1) * songs if len(given) <= 1 else _drawn(given, songs)
    return seeds, _drawn(request.retake_seeds or (), songs)


def _drawn(given: Sequence[int], songs: int) -> list[int]:
    """The first so many seeds; those that are missing, or -1, are drawn."""
    seeds = [*given[:songs], *[-1] * (songs - len(given))]
    return [secrets.randbelow(DRAWN_SEEDS) if seed == -1 else seed for seed in seeds]


def _listed(seeds: Sequence[int], *, one_is_enough: bool) -> int | str | list[int | str]:
    """Seeds as a request gives them; `one_is_enough` where a single one is that of every song."""
    if len(seeds) == 1 or (one_is_enough and len({*seeds}) == 1):
        return json_seed(seeds[0])
    return [json_seed(seed) for seed in seeds]


def _named(task: Task, found: FoundSource | None) -> dict[str, Any]:
    """How the request for the same music again names its source."""
    if found is None:
        return {}
    if found.name is None:  # a retake has all it needs of that job in its own fields
        return {JOB_FIELD: None, "source_index": 0} if task == "retake" else {}
    own, other = FILE_FIELDS if task in ("text2music", "audio2audio") else FILE_FIELDS[::-1]
    return {own: found.name, other: None}


def _song_of(request: GenerateRequest, task: Task, length_s: float) -> GenerationParams:
    """The song, but for its seeds."""
    return GenerationParams(
        prompt=request.prompt,
        lyrics=request.lyrics,
        duration_s=length_s,
        seed=0,
        task=task,
        steps=request.infer_step,
        scheduler=request.scheduler_type,
        cfg_type=request.cfg_type,
        guidance_scale=request.guidance_scale,
        omega_scale=request.omega_scale,
        guidance_interval=request.guidance_interval,
        guidance_interval_decay=request.guidance_interval_decay,
        min_guidance_scale=request.min_guidance_scale,
        use_erg_tag=request.use_erg_tag,
        use_erg_lyric=request.use_erg_lyric,
        use_erg_diffusion=request.use_erg_diffusion,
        oss_steps=request.oss_steps or (),
        guidance_scale_text=request.guidance_scale_text,
        guidance_scale_lyric=request.guidance_scale_lyric,
        ref_audio_strength=request.ref_audio_strength,
        retake_variance=request.retake_variance,
        repaint_start_s=request.repaint_start,
        repaint_end_s=request.repaint_end,
        left_extend_s=request.left_extend_length,
        right_extend_s=request.right_extend_length,
        edit_target_prompt=request.edit_target_prompt or "",
        edit_target_lyrics=request.edit_target_lyrics or "",
        edit_n_min=request.edit_n_min,
        edit_n_max=request.edit_n_max,
        edit_n_avg=request.edit_n_avg,
        vocal_language=request.vocal_language,
    )
