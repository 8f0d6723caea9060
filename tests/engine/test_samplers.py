import random

import numpy as np
import pytest
import torch

from acestep_engine import samplers
from acestep_engine.params import SCHEDULERS, SchedulerType
from acestep_engine.samplers import SamplerState


def walk(scheduler: SchedulerType, steps: int, velocity_of: object, omega_scale: float = 0.0) -> torch.Tensor:
    """Latents after a whole schedule from noise, with a velocity that depends on the latents and sigma."""
    schedule = samplers.make_schedule(scheduler, steps)
    generator = torch.Generator().manual_seed(0)
    state = SamplerState(torch.randn(8, 16, 4, generator=generator))
    while state.index < schedule.forwards:
        sigma = schedule.timesteps[state.index].item() / 1000
        state = samplers.step(scheduler, schedule, state, velocity_of(state.latents, sigma), omega_scale, generator)  # type: ignore[operator]
    return state.latents


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_true_velocity_leads_from_noise_to_the_music(scheduler: SchedulerType) -> None:
    """The velocity of a straight path to `music` is (latents - music) / sigma. Omega 0 leaves changes as they are."""
    music = torch.full((8, 16, 4), 0.5)
    found = walk(scheduler, 7, lambda latents, sigma: (latents - music) / sigma)
    torch.testing.assert_close(found, music, rtol=0, atol=1e-5)


def test_heun_is_closer_to_the_curve_than_euler_with_as_many_steps() -> None:
    """On dx/ds = x, from sigma 1 to 0, exact is x / e; Euler errs in the first order, Heun in the second."""
    start = torch.randn(8, 16, 4, generator=torch.Generator().manual_seed(0))
    errors = {s: (walk(s, 40, lambda x, _: x) - start / torch.e).norm().item() for s in ("euler", "heun")}
    assert errors["heun"] < errors["euler"] / 5


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 27, 200])
def test_sigmas_fall_from_one_to_zero(scheduler: SchedulerType, steps: int) -> None:
    schedule = samplers.make_schedule(scheduler, steps)
    assert schedule.steps == steps
    assert schedule.forwards == (2 * steps - 1 if scheduler == "heun" else steps)
    assert len(schedule.sigmas) == schedule.forwards + 1
    assert schedule.sigmas[0] == 1.0
    assert schedule.sigmas[-1] == 0.0
    assert bool((schedule.sigmas.diff() <= 0).all())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_oss_steps_take_as_many_steps_as_they_name(scheduler: SchedulerType) -> None:
    schedule = samplers.make_schedule(scheduler, 60, oss_steps=(2, 4, 5, 9, 16))
    assert schedule.steps == 5
    assert schedule.sigmas[-1] == 0.0
    assert bool((schedule.sigmas.diff() <= 0).all())


def published_oss_timesteps(oss_steps: tuple[int, ...]) -> list[float]:
    """Recompute them number by number, rounding to float32 wherever the published pipeline keeps a float32."""
    single, shift = np.float32, 3.0
    bounds = [shift * s / (1 + (shift - 1) * s) for s in (single(1) / single(1000), single(1))]
    timesteps = []
    for timestep in np.linspace(float(bounds[1]) * 1000, float(bounds[0]) * 1000, max(oss_steps)):
        sigma = float(timestep) / 1000
        timesteps.append(single(shift * sigma / (1 + (shift - 1) * sigma)) * single(1000))
    picked = [timesteps[step - 1] / single(1000) for step in oss_steps]
    shifted = [single(shift) * s / (single(1) + single(shift - 1) * s) for s in picked]
    return [float(s * single(1000)) for s in shifted]


def oss_lists(count: int) -> list[tuple[int, ...]]:
    draw = random.Random(7)
    return [tuple(sorted(draw.sample(range(1, 201), draw.randint(1, 30)))) for _ in range(count)]


PUBLISHED_OSS = [(1,), (3, 7), (2, 4, 5, 9, 16), (16, 29, 52, 96, 129, 158, 172, 183, 189, 200)]


@pytest.mark.parametrize("oss_steps", [*PUBLISHED_OSS, *oss_lists(60)], ids=str)
def test_picked_steps_have_the_published_timesteps_to_the_bit(oss_steps: tuple[int, ...]) -> None:
    schedule = samplers.make_schedule("euler", 60, oss_steps)
    assert schedule.timesteps.tolist() == published_oss_timesteps(oss_steps)
    pingpong, heun = (samplers.make_schedule(kind, 60, oss_steps) for kind in ("pingpong", "heun"))  # type: ignore[arg-type]
    assert torch.equal(pingpong.timesteps, schedule.timesteps)
    assert torch.equal(heun.timesteps[1::2], schedule.timesteps[1:])


def test_a_schedule_that_begins_at_less_noise_begins_lower() -> None:
    assert samplers.noise_level(1.0) == 1.0
    assert samplers.noise_level(0.0) == 0.0
    assert 0.25 < samplers.noise_level(0.25) < samplers.noise_level(0.5) < 1.0


def test_omega_stretches_the_change_around_its_mean() -> None:
    schedule = samplers.make_schedule("euler", 1)
    velocity = torch.randn(8, 16, 4, generator=torch.Generator().manual_seed(1))
    state = SamplerState(torch.zeros(8, 16, 4))
    change = {
        w: samplers.step("euler", schedule, state, velocity, w, torch.Generator()).latents for w in (-100.0, 100.0)
    }
    torch.testing.assert_close(change[-100.0].mean(), change[100.0].mean())
    torch.testing.assert_close(change[100.0].std() / change[-100.0].std(), torch.tensor(1.1 / 0.9), rtol=1e-4, atol=0)
