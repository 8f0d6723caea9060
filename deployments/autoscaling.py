"""How many Generator replicas there should be: by the songs that the JobManager really has, not by calls under way.

Ray Serve calls the policy in its controller, with what the JobManager reported through `record_autoscaling_stats`.
Bounds and delays are those of the Generator's `autoscaling_config`; Serve applies them to the answer.
"""

import math
from collections.abc import Mapping
from typing import Any

from ray.serve.config import AutoscalingContext

from deployments.messages import JOB_MANAGER

GENERATOR = "Generator"
WANTED_SONGS = "wanted_songs"  # what the JobManager reports: songs that wait or run


class QueuePolicy:
    """One replica for every `songs_per_replica` songs that wait or run, rounded up."""

    def __init__(self, songs_per_replica: int = 2) -> None:
        self._songs_per_replica = songs_per_replica

    def __call__(self, contexts: Mapping[Any, AutoscalingContext]) -> tuple[dict[Any, int], dict[Any, dict[str, Any]]]:
        by_name = {context.deployment_name: (key, context) for key, context in contexts.items()}
        decisions: dict[Any, int] = {}
        if JOB_MANAGER in by_name:
            key, job_manager = by_name[JOB_MANAGER]
            decisions[key] = 1
            wanted = _wanted_songs(job_manager)
            if GENERATOR in by_name and wanted is not None:
                decisions[by_name[GENERATOR][0]] = math.ceil(wanted / self._songs_per_replica)
        return decisions, {}


def _wanted_songs(job_manager: AutoscalingContext) -> float | None:
    """None as long as there is no report: then nothing changes."""
    reports = (job_manager.aggregated_metrics or {}).get(WANTED_SONGS) or {}
    return sum(reports.values()) if reports else None
