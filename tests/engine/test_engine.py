from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from acestep_engine.audio import SourceAudio
from acestep_engine.calibrate import Calibration
from acestep_engine.checkpoint import NANO_PATH, check_folder, notice
from acestep_engine.conditioning import Conditioning, EncodeRequest
from acestep_engine.engine import Engine
from acestep_engine.errors import Cancelled, CheckpointError, CheckpointNotFoundError, NumericalError
from acestep_engine.params import GenerationParams, ModelSpec, Progress
from acestep_engine.requests import Inputs
from acestep_engine.text_encoder import TextEncoder

NANO = ModelSpec("nano", str(NANO_PATH))
CALIBRATION = Calibration(max_tokens=1000, tokens_per_decoded_frame=5.0)
PARAMS = GenerationParams("calm piano", "[verse]\nslow river", 2.0, seed=3, steps=4)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(NANO, device="cpu", calibration=CALIBRATION)


@pytest.fixture(scope="module")
def conditioning() -> Conditioning:
    return TextEncoder.load(NANO, device="cpu").encode([EncodeRequest(PARAMS.prompt, PARAMS.lyrics)])[0]


def test_a_song_is_48_khz_stereo_of_about_the_asked_length(engine: Engine, conditioning: Conditioning) -> None:
    song = engine.generate(PARAMS, Inputs(conditioning))
    assert song.latents.shape == (8, 16, 21)
    assert song.audio.shape == (2, round(21 * 4096 * 48_000 / 44_100 + 0.5))
    assert song.duration_s == pytest.approx(2.0, abs=0.1)
    assert np.abs(song.audio).max() > 0


def test_the_same_seed_is_the_same_song_whatever_ran_between(engine: Engine, conditioning: Conditioning) -> None:
    first = engine.generate(PARAMS, Inputs(conditioning))
    other = engine.generate(replace(PARAMS, seed=4), Inputs(conditioning))
    again = engine.generate(PARAMS, Inputs(conditioning))
    np.testing.assert_array_equal(again.audio, first.audio)
    assert not np.array_equal(other.latents, first.latents)


def test_arrays_from_the_object_store_are_read_only_and_still_work(engine: Engine, conditioning: Conditioning) -> None:
    for array in (conditioning.text, conditioning.lyric_ids, conditioning.lyric_mask):
        array.flags.writeable = False
    samples = np.zeros((2, 48_000), dtype=np.float32)
    samples.flags.writeable = False
    engine.generate(replace(PARAMS, task="audio2audio"), Inputs(conditioning, source=SourceAudio(samples, 48_000)))


def test_progress_begins_at_zero_and_counts_every_forward(engine: Engine, conditioning: Conditioning) -> None:
    seen: list[Progress] = []
    engine.generate(replace(PARAMS, scheduler="heun"), Inputs(conditioning), on_progress=seen.append)
    assert [p.step for p in seen if p.stage == "diffusion"] == list(range(8))
    assert {p.steps for p in seen if p.stage == "diffusion"} == {7}
    assert seen[-1].stage == "decoding"


def test_a_cancelled_request_stops_before_the_next_forward(engine: Engine, conditioning: Conditioning) -> None:
    seen: list[Progress] = []
    with pytest.raises(Cancelled):
        engine.generate(
            replace(PARAMS, steps=50), Inputs(conditioning), on_progress=seen.append, cancelled=lambda: len(seen) == 3
        )
    assert seen[-1].step == 2


def test_nan_is_an_error_and_no_audio(engine: Engine, conditioning: Conditioning) -> None:
    broken = replace(conditioning, text=np.full_like(conditioning.text, np.nan))
    with pytest.raises(NumericalError):
        engine.generate(PARAMS, Inputs(broken))


@pytest.mark.slow
def test_a_reference_longer_than_the_longest_song_is_cut(engine: Engine, conditioning: Conditioning) -> None:
    source = SourceAudio(np.zeros((2, 250 * 8_000), np.float32), 8_000)
    params = replace(PARAMS, task="audio2audio", ref_audio_strength=1.0)
    assert engine.generate(params, Inputs(conditioning, source=source)).duration_s == pytest.approx(240.0, abs=0.1)


def test_a_reference_steers_the_music(engine: Engine, conditioning: Conditioning) -> None:
    noise = np.random.default_rng(0).standard_normal((2, 48_000)).astype(np.float32) * 0.1
    source = SourceAudio(noise, 48_000)
    params = replace(PARAMS, task="audio2audio")
    full = engine.generate(replace(params, ref_audio_strength=1.0), Inputs(conditioning, source=source))
    near, far = (
        np.linalg.norm(
            engine.generate(replace(params, ref_audio_strength=s), Inputs(conditioning, source=source)).latents
            - full.latents
        )
        for s in (0.9, 0.1)
    )
    assert near < far


@pytest.mark.slow
def test_compiled_blocks_make_the_same_music(conditioning: Conditioning, engine: Engine) -> None:
    compiled = Engine.load(replace(NANO, torch_compile=True), device="cpu", calibration=CALIBRATION)
    found = torch.tensor(compiled.generate(PARAMS, Inputs(conditioning)).latents)
    expected = torch.tensor(engine.generate(PARAMS, Inputs(conditioning)).latents)
    assert ((found - expected).norm() / expected.norm()).item() < 2e-3


def test_the_nano_model_says_what_it_cannot() -> None:
    assert "no voices" in str(notice(NANO))
    assert notice(ModelSpec("other", "/somewhere")) is None


def test_the_nano_checkpoint_is_complete_and_small() -> None:
    check_folder(NANO_PATH)
    assert sum(file.stat().st_size for file in NANO_PATH.rglob("*") if file.is_file()) <= 32 * 2**20


def test_a_folder_that_is_no_checkpoint_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint folder"):
        Engine.load(ModelSpec("x", str(tmp_path / "nowhere")), device="cpu")
    with pytest.raises(CheckpointNotFoundError, match=r"umt5-base/config\.json"):
        Engine.load(ModelSpec("x", str(tmp_path)), device="cpu")


def test_a_broken_tokenizer_is_a_checkpoint_error(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for part in tiny_checkpoint.iterdir():
        (folder / part.name).symlink_to(part)
    (folder / "umt5-base").unlink()
    (folder / "umt5-base").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "umt5-base" / name).symlink_to(tiny_checkpoint / "umt5-base" / name)
    with pytest.raises(CheckpointError, match="tokenizer"):
        TextEncoder.load(ModelSpec("x", str(folder)), device="cpu")
