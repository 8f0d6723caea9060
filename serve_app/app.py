"""Binds the deployments together. `serve run serve_config.yaml` and `acestep-serve` both start here."""

import getpass
import logging
import os
import uuid
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig

from acestep_engine.audio import AudioLimits
from acestep_engine.params import AdapterLimits
from deployments.generator import Generator
from deployments.job_manager import JobManager, JobManagerConfig
from deployments.lease import LeaseTerms, hangs_after_s
from deployments.messages import JOB_MANAGER
from deployments.models import Models, resolve_models
from deployments.placement import Placement, ReplicaRequest, place
from deployments.results import Folders
from deployments.retention import RetentionTerms
from deployments.text_encoder import TextEncoder
from serve_app.ingress import Ingress
from serve_app.models import model_choice
from serve_app.proxy import CALLBACK, CALLBACK_VARIABLE
from serve_app.settings import JobSettings, Settings

logger = logging.getLogger("ray.serve.acestep")  # Ray Serve's handlers write it

MANY_REQUESTS = 10_000  # the JobManager bounds its queue itself; Serve's default of 5 would be a bottleneck
JOB_MANAGER_GRACE_S = 10.0  # its jobs run in its next life
HEALTH_CHECK_PERIOD_S = 1.0  # a replica that died is replaced from its next check on
HEALTH_CHECK_TIMEOUT_S = 10.0  # three in a row, and a Generator that is frozen is replaced
LOOK_BACK_S = 15.0  # Serve wants it over its own 10 s between reports
SONGS_PER_REPLICA = 2  # on average, before Serve adds a replica: each song more makes the others of a GPU slower
REPLICA_ENVIRONMENT = {
    # Nothing here blocks an event loop, so that a replica needs only one: calls arrive sooner, and threads of the event
    # loops do not hold up those of an engine.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",  # they are reported every ten seconds
    # How often an OpenMP thread looks for work before it sleeps. The default is 30 times this. It takes the core from
    # the thread that the others wait for, where other programs or a quota leave fewer cores than there are threads.
    "GOMP_SPINCOUNT": "10000",
}
MIB = 2**20
USUAL_RESERVE = (0.1, 20 * 2**30)  # a share of the disk, and the most bytes that this may be
SIZES = 5  # of songs, by which the JobManager lets them start


def build_app(settings: Settings) -> Application:
    """The application for the cluster that Ray is connected to.

    Relative folders mean those of the directory this is called in. Raises PlacementError for replicas that the cluster
    has no place for, ModelUnavailableError for a model that cannot be had.
    """
    warn_of_a_bare_proxy()
    resources = ray.cluster_resources()
    placement = place(_replica_request(settings), resources.get("CPU", 0.0), resources.get("GPU", 0.0))
    models = resolve_models(model_choice(settings), cluster_has_gpu=placement.generator_gpus > 0)
    resolved = settings.model_copy(
        update={
            "output_dir": _absolute(settings.output_dir),
            "state_dir": _absolute(settings.state_dir),
            "audio_root": None if settings.audio_root is None else _absolute(settings.audio_root),
            "lora_root": None if settings.lora_root is None else _absolute(settings.lora_root),
        }
    )
    quiet = LoggingConfig(log_level=settings.log_level, enable_access_log=False)
    generator = _generator(settings, placement, models, quiet)
    text_encoder = _text_encoder(settings, placement, models, quiet)
    config = JobManagerConfig(
        folders=Folders(resolved.state_dir, resolved.output_dir, _shown(settings.output_dir)),
        models=models,
        loras={name: str(_absolute(Path(path))) for name, path in settings.loras.items()},
        build_id=uuid.uuid4().hex,
        songs_per_size=settings.generator.songs_per_size,
        queue_size=settings.limits.queue_size,
        lease_terms=LeaseTerms(settings.jobs.lease_s, settings.jobs.job_timeout_s),
        redis_url=None if settings.store == "sqlite" else settings.store,
        retention=retention_terms(settings.jobs),
        callbacks=settings.callbacks.rules,
    )
    job_manager = serve.deployment(JobManager).options(
        name=JOB_MANAGER,
        # One, always. That it is counted as autoscaled is what brings its figures to the scaling policy.
        autoscaling_config=AutoscalingConfig(min_replicas=1, max_replicas=1, look_back_period_s=LOOK_BACK_S),
        max_ongoing_requests=MANY_REQUESTS,
        ray_actor_options=_reserving(cpus=0),
        graceful_shutdown_timeout_s=JOB_MANAGER_GRACE_S,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        logging_config=quiet,
    )
    ingress_deployment: Any = Ingress  # the decorator made a deployment of the class, unknown to its types
    ingress = ingress_deployment.options(
        num_replicas=settings.ingress_replicas,
        ray_actor_options=_reserving(cpus=0),
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        logging_config=quiet,  # it writes its own line for each request
    )
    return ingress.bind(resolved, job_manager.bind(config, generator, text_encoder))


def warn_of_a_bare_proxy() -> None:
    """Serve's proxies read the variable when they start; `acestep-serve` sets it, `serve run` and KubeRay do not."""
    if CALLBACK_VARIABLE not in os.environ:
        logger.warning(
            "%s is not set: set it to %s where Ray and Serve are started, or requests that offer an upgrade (Java's "
            "HttpClient, curl --http2) lose their bodies, HTTP/1.0 clients get chunk sizes in their audio, and songs "
            "have two X-Request-ID",
            CALLBACK_VARIABLE,
            CALLBACK,
        )


def retention_terms(jobs: JobSettings) -> RetentionTerms:
    """Return what is kept of ended jobs, as the settings have it."""
    quota_bytes = None if jobs.result_quota_mb is None else jobs.result_quota_mb * MIB
    reserve = USUAL_RESERVE if jobs.disk_reserve is None else (jobs.disk_reserve, None)
    return RetentionTerms(jobs.result_ttl_s, jobs.row_ttl_s, quota_bytes, *reserve)


def _generator(settings: Settings, placement: Placement, models: Models, logging: LoggingConfig) -> Application:
    limits = settings.limits
    audio_limits = AudioLimits(
        max_duration_s=limits.source_duration_s,
        max_channels=limits.source_channels,
        min_rate_hz=limits.source_min_rate_hz,
        max_rate_hz=limits.source_max_rate_hz,
    )
    deployment = serve.deployment(Generator).options(
        autoscaling_config=AutoscalingConfig(
            min_replicas=placement.min_replicas,
            max_replicas=placement.max_replicas,
            target_ongoing_requests=SONGS_PER_REPLICA,
            look_back_period_s=LOOK_BACK_S,
            upscale_delay_s=2,
            downscale_delay_s=settings.generator.downscale_delay_s,
        ),
        max_ongoing_requests=settings.generator.songs_per_size * SIZES,
        ray_actor_options=_reserving(placement.generator_cpus, placement.generator_gpus),
        graceful_shutdown_timeout_s=settings.generator.graceful_shutdown_timeout_s,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        logging_config=logging,
    )
    adapter_limits = AdapterLimits(settings.generator.loras_on_gpu, settings.generator.loras_mb * MIB)
    return deployment.bind(
        models.first,
        placement.generator_gpus > 0,
        audio_limits,
        models.download_to,
        adapter_limits,
        hangs_after_s(settings.jobs.job_timeout_s),
    )


def _text_encoder(settings: Settings, placement: Placement, models: Models, logging: LoggingConfig) -> Application:
    encoder = settings.text_encoder
    deployment = serve.deployment(TextEncoder).options(
        num_replicas=encoder.replicas,
        max_ongoing_requests=MANY_REQUESTS,
        ray_actor_options=_reserving(0, placement.text_encoder_gpus),
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        logging_config=logging,
    )
    return deployment.bind(
        models.first,
        placement.text_encoder_gpus > 0,
        encoder.cache_entries,
        encoder.max_batch_size,
        models.download_to,
        hangs_after_s(settings.jobs.job_timeout_s),
    )


def _replica_request(settings: Settings) -> ReplicaRequest:
    return ReplicaRequest(
        min_replicas=settings.generator.min_replicas,
        max_replicas=settings.generator.max_replicas,
        use_gpu=settings.generator.use_gpu,
        cluster_autoscales=settings.generator.cluster_autoscales,
        text_encoder_replicas=settings.text_encoder.replicas,
        text_encoder_gpus=settings.text_encoder.num_gpus,
    )


def _reserving(cpus: float, gpus: float = 0) -> dict[str, Any]:
    return {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": replica_environment()}}


def replica_environment() -> dict[str, str]:
    """Return the environment variables of a replica; what the user has set wins."""
    environment = {name: os.environ.get(name, value) for name, value in REPLICA_ENVIRONMENT.items()}
    if "OMP_WAIT_POLICY" in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        del environment["GOMP_SPINCOUNT"]  # it would win
    try:
        getpass.getuser()
    except (KeyError, OSError):  # PyTorch asks for a name when it is imported
        environment["USER"] = f"uid{os.getuid()}"
    return environment


def _absolute(path: Path) -> Path:
    """Replicas may run in another directory."""
    return path.expanduser().absolute()


def _shown(output_dir: Path) -> str:
    """How `audio_path` names the output folder: as it was configured."""
    path = str(output_dir)
    return path if path.startswith(("/", "~", "..")) else f"./{path}"
