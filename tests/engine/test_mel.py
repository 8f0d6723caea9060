"""The log-mel spectrogram equals the published one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from acestep_engine.errors import AudioError, CheckpointError
from acestep_engine.model.mel import LogMel, MelConfig


@pytest.fixture(scope="module")
def mel() -> LogMel:
    return LogMel(MelConfig())


def test_the_spectrogram_equals_the_published_figure(mel: LogMel, golden: Path) -> None:
    figures = load_file(golden / "cases" / "autoencoder.safetensors")

    found = mel(figures["mel_in"])

    assert found.shape == figures["mel"].shape
    assert (found - figures["mel"]).norm() <= 1e-5 * figures["mel"].norm()


def test_every_512_samples_give_a_frame_whatever_the_leading_dimensions(mel: LogMel) -> None:
    noise = torch.randn(3, 2, 4096, generator=torch.Generator().manual_seed(0))

    found = mel(noise)

    assert found.shape == (3, 2, 128, 8)
    torch.testing.assert_close(found[1, 0], mel(noise[1, 0]))


def test_half_precision_audio_is_analysed_in_float32(mel: LogMel) -> None:
    audio = torch.randn(4096, generator=torch.Generator().manual_seed(0)).bfloat16()

    assert mel(audio).dtype == torch.float32
    torch.testing.assert_close(mel(audio), mel(audio.float()))


def test_silence_is_the_floor_and_not_minus_infinity(mel: LogMel) -> None:
    assert mel(torch.zeros(2048)).isfinite().all()


def test_audio_too_short_for_its_mirrored_ends_is_refused(mel: LogMel) -> None:
    assert mel(torch.zeros(769)).shape == (128, 1)
    with pytest.raises(AudioError, match="768 samples are too few"):
        mel(torch.zeros(768))


def test_the_filter_bank_is_no_part_of_the_weights(mel: LogMel) -> None:
    assert not mel.state_dict()


@pytest.mark.parametrize("value", [None, "44100", True, 0, -1])
def test_a_config_without_a_usable_rate_is_refused(value: object) -> None:
    config = {"sampling_rate": value, "n_fft": 2048, "win_length": 2048, "hop_length": 512}

    with pytest.raises(CheckpointError, match="sampling_rate"):
        MelConfig.from_dict(config | {"f_min": 40, "f_max": 16000, "n_mels": 128})
