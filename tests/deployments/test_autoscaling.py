from typing import Any

import pytest
from ray.serve.config import AutoscalingContext

from deployments.autoscaling import GENERATOR, WANTED_SONGS, QueuePolicy
from deployments.messages import JOB_MANAGER


def context(name: str, reported: dict[str, float] | None = None) -> AutoscalingContext:
    """What Serve tells a policy of one deployment."""
    metrics: Any = None if reported is None else {WANTED_SONGS: reported}
    return AutoscalingContext(
        deployment_id=name,
        deployment_name=name,
        app_name="ace-step",
        current_num_replicas=1,
        target_num_replicas=1,
        running_replicas=[],
        total_num_requests=0.0,
        total_queued_requests=0.0,
        aggregated_metrics=metrics,
        raw_metrics=None,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=4,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=None,
    )


@pytest.mark.parametrize(("songs", "replicas"), [(0, 0), (1, 1), (2, 1), (3, 2), (40, 20)])
def test_replicas_follow_the_songs_that_wait_or_run(songs: int, replicas: int) -> None:
    contexts = {
        name: context(name, {"only": songs} if name == JOB_MANAGER else {}) for name in (GENERATOR, JOB_MANAGER)
    }
    decisions, _ = QueuePolicy(songs_per_replica=2)(contexts)
    assert decisions == {GENERATOR: replicas, JOB_MANAGER: 1}


@pytest.mark.parametrize("reported", [None, {}])
def test_without_a_report_nothing_changes(reported: dict[str, float] | None) -> None:
    contexts = {GENERATOR: context(GENERATOR), JOB_MANAGER: context(JOB_MANAGER, reported)}
    decisions, _ = QueuePolicy()(contexts)
    assert decisions == {JOB_MANAGER: 1}
