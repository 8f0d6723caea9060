"""Where the deployments run: what each replica reserves. Pure, so that every cluster can be tested."""

from dataclasses import dataclass


class PlacementError(Exception):
    """The cluster cannot hold what was asked for; without this error Serve would wait for ever."""


@dataclass(frozen=True)
class ReplicaRequest:
    """What the settings ask for. `use_gpu` None: a GPU each where the cluster has any, else the CPU."""

    min_replicas: int
    max_replicas: int | None  # None: as many as fit
    use_gpu: bool | None
    cluster_autoscales: bool  # nodes may join later: believe what is asked for
    text_encoder_replicas: int
    text_encoder_gpus: float  # share of a GPU per text encoder replica


@dataclass(frozen=True)
class Placement:
    """What one replica of each reserves, and between how many Generator replicas Serve scales."""

    min_replicas: int
    max_replicas: int
    generator_gpus: float
    generator_cpus: float
    text_encoder_gpus: float


def place(request: ReplicaRequest, cluster_cpus: float, cluster_gpus: float) -> Placement:
    """Raises PlacementError, a sentence with both numbers, for what would never be placed."""
    gpus = int(cluster_gpus)
    if request.min_replicas > (request.max_replicas or request.min_replicas):
        raise PlacementError(
            f"generator.min_replicas, {request.min_replicas}, is over generator.max_replicas, {request.max_replicas}"
        )
    wants_gpu = request.use_gpu if request.use_gpu is not None else gpus > 0 or request.cluster_autoscales
    if not wants_gpu:
        return _on_cpu(request, cluster_cpus, gpus)
    return _on_gpu(request, gpus)


def _on_gpu(request: ReplicaRequest, gpus: int) -> Placement:
    shares = request.text_encoder_gpus * request.text_encoder_replicas
    # One text encoder with up to half a GPU shares it with a Generator. More of them may land on different GPUs, and a
    # Generator that reserves half a GPU or less could meet another one there.
    lends = shares > 0 and request.text_encoder_replicas == 1 and request.text_encoder_gpus < 0.5
    taken = 0 if shares == 0 or lends else request.text_encoder_replicas
    room = gpus - taken
    beside = f" beside {taken} for the text encoder" if taken else ""
    if not request.cluster_autoscales:
        wanted = max(request.min_replicas, request.max_replicas or 1)
        if wanted > room:
            raise PlacementError(
                f"{_replicas(wanted)} for {_gpus(wanted)}{beside}, the cluster has {gpus}: lower"
                " generator.min_replicas and generator.max_replicas, add GPUs, set generator.use_gpu to false for the"
                " CPU, or set generator.cluster_autoscales to true if nodes with GPUs join later"
            )
        most = request.max_replicas or room
    else:
        most = request.max_replicas or max(room, request.min_replicas, 1)
    return Placement(
        min_replicas=request.min_replicas,
        max_replicas=most,
        generator_gpus=1.0 - request.text_encoder_gpus if lends else 1.0,
        generator_cpus=0.0,  # the GPU is what is scarce; a host with one CPU must do
        text_encoder_gpus=request.text_encoder_gpus,
    )


def _on_cpu(request: ReplicaRequest, cpus: float, gpus: int) -> Placement:
    if request.text_encoder_gpus > 0 and gpus == 0:
        raise PlacementError(
            f"text_encoder.num_gpus is {request.text_encoder_gpus}, but the cluster has no GPU: set it to 0"
        )
    wanted = max(request.min_replicas, 1)
    if wanted > max(cpus, 1):
        raise PlacementError(
            f"{_replicas(wanted)} for a CPU each, the cluster has {cpus:g} CPUs and no GPU is used: lower"
            " generator.min_replicas"
        )
    most = min(request.max_replicas or wanted, max(int(cpus), 1))
    return Placement(
        min_replicas=request.min_replicas,
        max_replicas=most,
        generator_gpus=0.0,
        generator_cpus=1.0 if cpus >= wanted else 0.0,
        text_encoder_gpus=request.text_encoder_gpus,
    )


def _replicas(count: int) -> str:
    return "1 Generator replica asks" if count == 1 else f"{count} Generator replicas ask"


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
