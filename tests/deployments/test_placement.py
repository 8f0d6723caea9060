"""Where replicas go, on every kind of cluster."""

import dataclasses

import pytest

from deployments.placement import PlacementError, ReplicaRequest, place

DEFAULTS = ReplicaRequest(
    min_replicas=1,
    max_replicas=None,
    use_gpu=None,
    cluster_autoscales=False,
    text_encoder_replicas=1,
    text_encoder_gpus=0.0,
)


def test_without_a_gpu_one_replica_runs_on_the_cpu() -> None:
    placement = place(DEFAULTS, cluster_cpus=2, cluster_gpus=0)
    assert (placement.generator_gpus, placement.generator_cpus) == (0, 1)
    assert (placement.min_replicas, placement.max_replicas) == (1, 1)


def test_a_cluster_without_any_cpu_still_places_the_generator() -> None:
    assert place(DEFAULTS, cluster_cpus=0, cluster_gpus=0).generator_cpus == 0


def test_with_gpus_there_is_up_to_one_replica_per_gpu() -> None:
    placement = place(DEFAULTS, cluster_cpus=1, cluster_gpus=4)
    assert (placement.generator_gpus, placement.generator_cpus) == (1, 0)
    assert (placement.min_replicas, placement.max_replicas) == (1, 4)


def test_more_replicas_than_gpus_are_an_error_that_says_both_numbers() -> None:
    request = dataclasses.replace(DEFAULTS, min_replicas=2)
    with pytest.raises(PlacementError, match="2 Generator replicas ask for 2 GPUs, the cluster has 1: lower"):
        place(request, cluster_cpus=8, cluster_gpus=1)


def test_asking_for_a_gpu_where_there_is_none_is_an_error() -> None:
    request = dataclasses.replace(DEFAULTS, use_gpu=True)
    with pytest.raises(PlacementError, match="1 Generator replica asks for 1 GPU, the cluster has 0"):
        place(request, cluster_cpus=8, cluster_gpus=0)


def test_a_gpu_is_left_alone_when_it_is_not_wanted() -> None:
    placement = place(dataclasses.replace(DEFAULTS, use_gpu=False), cluster_cpus=8, cluster_gpus=4)
    assert (placement.generator_gpus, placement.max_replicas) == (0, 1)


def test_a_cluster_that_grows_is_believed() -> None:
    request = dataclasses.replace(DEFAULTS, min_replicas=2, max_replicas=8, cluster_autoscales=True)
    placement = place(request, cluster_cpus=0, cluster_gpus=0)
    assert (placement.min_replicas, placement.max_replicas, placement.generator_gpus) == (2, 8, 1)


def test_an_upper_bound_over_the_gpus_that_exist_is_an_error_as_well() -> None:
    with pytest.raises(PlacementError, match="8 Generator replicas ask for 8 GPUs, the cluster has 2"):
        place(dataclasses.replace(DEFAULTS, max_replicas=8), cluster_cpus=2, cluster_gpus=2)


def test_on_cpus_no_more_replicas_than_fit_are_ever_asked_for() -> None:
    assert place(dataclasses.replace(DEFAULTS, max_replicas=8), cluster_cpus=2, cluster_gpus=0).max_replicas == 2


def test_a_generator_leaves_the_text_encoder_its_share_of_the_only_gpu() -> None:
    placement = place(dataclasses.replace(DEFAULTS, text_encoder_gpus=0.25), cluster_cpus=8, cluster_gpus=1)
    assert placement.generator_gpus + placement.text_encoder_gpus == 1


def test_two_text_encoders_on_gpus_take_theirs_from_the_generators() -> None:
    request = dataclasses.replace(DEFAULTS, text_encoder_replicas=2, text_encoder_gpus=0.25)
    assert place(request, cluster_cpus=8, cluster_gpus=4).max_replicas == 2
    with pytest.raises(PlacementError, match="1 GPU beside 2 for the text encoder, the cluster has 2"):
        place(request, cluster_cpus=8, cluster_gpus=2)


def test_a_text_encoder_with_a_share_of_no_gpu_is_an_error() -> None:
    with pytest.raises(PlacementError, match=r"text_encoder\.num_gpus is 0\.5, but the cluster has no GPU"):
        place(dataclasses.replace(DEFAULTS, text_encoder_gpus=0.5), cluster_cpus=8, cluster_gpus=0)


def test_a_minimum_over_the_maximum_is_an_error() -> None:
    with pytest.raises(PlacementError, match="is over"):
        place(dataclasses.replace(DEFAULTS, min_replicas=3, max_replicas=2), cluster_cpus=8, cluster_gpus=4)


def test_scaling_to_zero_is_possible_and_needs_a_gpu_all_the_same() -> None:
    request = dataclasses.replace(DEFAULTS, min_replicas=0, use_gpu=True)
    assert place(request, cluster_cpus=8, cluster_gpus=1).min_replicas == 0
    with pytest.raises(PlacementError):
        place(request, cluster_cpus=8, cluster_gpus=0)
