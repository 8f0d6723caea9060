from dataclasses import replace

import pytest
import torch

from acestep_engine import guidance
from acestep_engine.params import GenerationParams

PARAMS = GenerationParams("", "", 10.0, seed=0)
GENERATOR = torch.Generator().manual_seed(0)
CONDITIONED, UNCONDITIONED = torch.randn(2, 8, 16, 5, generator=GENERATOR)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_scales_0_and_1_switch_guidance_off(scale: float) -> None:
    assert len(guidance.guidance_window(replace(PARAMS, guidance_scale=scale), 60)) == 0


def test_half_of_the_steps_are_guided_by_default() -> None:
    assert guidance.guidance_window(PARAMS, 60) == range(15, 45)


def test_the_scale_decays_to_the_minimum_at_the_last_guided_step() -> None:
    params = replace(PARAMS, guidance_interval_decay=1.0)
    window = guidance.guidance_window(params, 60)
    scales = [guidance.current_scale(params, window, index) for index in window]
    assert scales[0] == params.guidance_scale
    assert scales[-1] == pytest.approx(params.min_guidance_scale)
    assert scales == sorted(scales, reverse=True)


def test_a_single_guided_step_has_the_full_scale_whatever_the_decay() -> None:
    params = replace(PARAMS, guidance_interval_decay=1.0)
    assert guidance.current_scale(params, range(3, 4), 3) == params.guidance_scale


def test_a_scale_of_one_is_the_conditioned_prediction() -> None:
    torch.testing.assert_close(guidance.cfg(CONDITIONED, UNCONDITIONED, 1.0), CONDITIONED)
    torch.testing.assert_close(guidance.apg(CONDITIONED, UNCONDITIONED, 1.0, None)[0], CONDITIONED)
    torch.testing.assert_close(guidance.cfg_star(CONDITIONED, UNCONDITIONED, 1.0, index=2), CONDITIONED)
    torch.testing.assert_close(guidance.double(CONDITIONED, UNCONDITIONED, UNCONDITIONED, 1.0, 1.0), CONDITIONED)


def test_apg_adds_nothing_along_the_conditioned_prediction() -> None:
    guided, _ = guidance.apg(CONDITIONED, UNCONDITIONED, 15.0, None)
    along = ((guided - CONDITIONED) * CONDITIONED).sum(dim=(-2, -1))
    torch.testing.assert_close(along, torch.zeros(8), rtol=0, atol=1e-3)


def test_apg_remembers_the_last_difference() -> None:
    _, momentum = guidance.apg(CONDITIONED, UNCONDITIONED, 15.0, None)
    torch.testing.assert_close(momentum, CONDITIONED - UNCONDITIONED)
    again, _ = guidance.apg(CONDITIONED, UNCONDITIONED, 15.0, momentum)
    fresh, _ = guidance.apg(CONDITIONED, UNCONDITIONED, 15.0, None)
    assert not torch.equal(again, fresh)


def test_apg_of_equal_predictions_changes_nothing() -> None:
    guided, _ = guidance.apg(CONDITIONED, CONDITIONED, 15.0, None)
    torch.testing.assert_close(guided, CONDITIONED)


@pytest.mark.parametrize("index", [0, 1])
def test_cfg_star_stands_still_in_its_first_two_forwards(index: int) -> None:
    assert not guidance.cfg_star(CONDITIONED, UNCONDITIONED, 7.0, index).any()
