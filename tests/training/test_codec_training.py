"""The autoencoder and the vocoder learn, and what is exported is what the engine loads."""

from pathlib import Path

import numpy as np
import torch

from acestep_engine.model.autoencoder import LATENT_SCALE, LATENT_SHIFT, MusicAutoencoder
from tests.training.codec import SMALL_DCAE, SMALL_VOCODER
from training.nano import autoencoder, vocoder
from training.nano.autoencoder import AutoencoderTrainer, decode, encode, load_dcae, standardise, started_dcae
from training.nano.codec_data import held_out_recordings, training_recordings
from training.nano.loop import step_generator
from training.nano.vocoder import VocoderTrainer

AUTOENCODER = autoencoder.Settings(batches=((4, 32), (2, 64)), judged=(4, 64), highest_rate=5e-3)
VOCODER = vocoder.Settings(segments=1, frames=16, backbone=(2, 32), judged=(1, 16), highest_rate=1e-2)
BACKBONE, SPECTRAL = 0.0, VOCODER.backbone_share  # where each part of a plan begins


def autoencoder_trainer(recorded: Path) -> AutoencoderTrainer:
    return AutoencoderTrainer(SMALL_DCAE, AUTOENCODER, training_recordings(recorded), held_out_recordings(recorded))


def vocoder_trainer(recorded: Path, settings: vocoder.Settings = VOCODER) -> VocoderTrainer:
    return VocoderTrainer(SMALL_VOCODER, settings, training_recordings(recorded), held_out_recordings(recorded))


def test_an_autoencoder_learns_to_give_back_what_it_is_given(recorded: Path) -> None:
    trainer = autoencoder_trainer(recorded)
    before = trainer.judge()

    for step in range(50):
        trainer.step(step, 0.0)

    after = trainer.judge()
    assert after["held_out_nepers"] < 0.85 * before["held_out_nepers"]
    assert after["latents_off_unit"] < before["latents_off_unit"]


def test_the_decoder_takes_standardised_latents_for_what_they_were_before(recorded: Path) -> None:
    dcae = started_dcae(SMALL_DCAE, seed=0)
    mel = training_recordings(recorded).draw(step_generator(0, 0), 4, 64).mel

    with torch.no_grad():
        before = encode(dcae, mel)
        deviation, mean = torch.std_mean(before, dim=(0, 2, 3))
        taken_before = dcae.decoder.conv_in(before / LATENT_SCALE + LATENT_SHIFT)
        standardise(dcae, mean, deviation)
        after = encode(dcae, mel)
        taken_after = dcae.decoder.conv_in(after / LATENT_SCALE + LATENT_SHIFT)

    deviation, mean = torch.std_mean(after, dim=(0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros(8), rtol=0, atol=1e-4)
    torch.testing.assert_close(deviation, torch.ones(8), rtol=1e-4, atol=0)
    inside = (..., slice(1, -1), slice(1, -1))  # at the edges the convolution sees zeros
    torch.testing.assert_close(taken_after[inside], taken_before[inside], rtol=1e-4, atol=1e-4)


def test_the_engine_encodes_and_decodes_with_what_is_exported(recorded: Path, tmp_path: Path) -> None:
    codec, sound = autoencoder_trainer(recorded), vocoder_trainer(recorded)
    codec.export(tmp_path)
    sound.export(tmp_path)
    audio = held_out_recordings(recorded).whole(0)[:, : 16 * 4096]

    engine = MusicAutoencoder.load(tmp_path, torch.device("cpu"), torch.float32)
    latents = engine.encode(audio, 44_100)
    image = engine.latents_to_image(latents)
    for step in range(engine.decoder.attending_steps):
        image = engine.decoder.attend(step, image)
    mel = engine.attended_to_mel(image, 0, 16)

    with torch.no_grad():
        dcae = load_dcae(tmp_path)
        torch.testing.assert_close(encode(dcae, engine.mel(audio)[None])[0], latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(decode(dcae, latents[None])[0], mel, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(engine.mel_to_audio(mel), sound.vocoder(mel)[:, 0], rtol=0, atol=1e-2)


def test_a_vocoder_learns_the_spectrum_of_what_it_hears(recorded: Path) -> None:
    trainer = vocoder_trainer(recorded)
    before = trainer.judge()

    for step in range(40):
        trainer.step(step, SPECTRAL)

    after = trainer.judge()
    assert after["held_out_nepers"] < 0.8 * before["held_out_nepers"]
    assert after["held_out_spectral"] < before["held_out_spectral"]


def test_the_backbone_learns_phases_before_the_head_learns_anything(recorded: Path) -> None:
    trainer = vocoder_trainer(recorded)
    head = [parameter.clone() for parameter in trainer.vocoder.head.parameters()]

    errors = [trainer.step(step, BACKBONE)["phases"] for step in range(60)]

    assert np.mean(errors[-10:]) < 0.9 * np.mean(errors[:10])
    assert all(map(torch.equal, head, trainer.vocoder.head.parameters()))


def test_a_vocoder_hears_what_the_autoencoder_gives_back(recorded: Path, tmp_path: Path) -> None:
    autoencoder_trainer(recorded).export(tmp_path)
    recordings, held_out = training_recordings(recorded), held_out_recordings(recorded)
    through = VocoderTrainer(SMALL_VOCODER, VOCODER, recordings, held_out, load_dcae(tmp_path))

    worse, better = through.judge()["held_out_nepers"], vocoder_trainer(recorded).judge()["held_out_nepers"]

    assert worse != better
    assert through.step(0, SPECTRAL)["mel"] > 0
