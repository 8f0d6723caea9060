"""Prompts and lyrics of our own: the defaults of a request, and what GET /sample_data hands out."""

from dataclasses import dataclass

DEFAULT_PROMPT = "indie pop, warm synth pads, clean electric guitar, soft drums, female vocal, hopeful, 104 bpm"

DEFAULT_LYRICS = """[verse]
Paper lanterns on the river
Every window holds a name
I was counting all the bridges
You were walking in the rain

[chorus]
Carry me over, carry me home
Light on the water, I'm not alone
Slow as the morning, sure as the tide
Carry me over to the other side"""


@dataclass(frozen=True)
class Sample:
    """One idea to start from: style, words, and the settings that suit them."""

    prompt: str
    lyrics: str
    audio_duration: float
    infer_step: int = 60
    guidance_scale: float = 15.0


SAMPLES: tuple[Sample, ...] = (
    Sample(DEFAULT_PROMPT, DEFAULT_LYRICS, audio_duration=60.0),
    Sample("solo jazz piano, brushed drums, upright bass, late night, smooth, relaxing, 72 bpm", "[inst]", 45.0),
    Sample(
        "folk, fingerpicked acoustic guitar, male vocal, intimate, campfire, 92 bpm",
        "[verse]\nMy father's coat still smells of pine\nI wear it when the leaves come down\n\n"
        "[chorus]\nOh, keep the fire low and long\nThe night can borrow half our song",
        audio_duration=60.0,
    ),
    Sample(
        "synthwave, driving bass, gated drums, neon, retro, energetic, 118 bpm",
        "[verse]\nHeadlights drawing lines in blue\nThe radio is tuned to you\n\n"
        "[chorus]\nFaster than the fading day\nWe are only miles away",
        audio_duration=90.0,
    ),
    Sample("cinematic orchestra, slow strings, distant horns, wide, solemn, building", "[inst]", 120.0),
    Sample(
        "hip hop, dusty drums, rhodes, vinyl crackle, spoken male vocal, laid back, 86 bpm",
        "[verse]\nPencil behind the ear, coffee going cold\n"
        "Writing down the parts of me that never got told\n\n"
        "[chorus]\nOne more line before the light\nOne more line and it comes out right",
        audio_duration=60.0,
    ),
)
