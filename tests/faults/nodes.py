"""A cluster of several nodes on one machine, one of which is lost."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.application import Application
from tests.faults.campaign import Fault, Stage
from tests.faults.ledger import LONG
from tests.faults.processes import LEASE_S


class ClusterApplication(Application):
    cluster: Any
    nodes: dict[int, Any]  # that carry Generators, by the process id of the node's raylet


@contextmanager
def three_nodes(folder: Path) -> Iterator[Application]:
    """A head without Generators, and two nodes with a pretended GPU each; each Generator has a node to itself."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=0, num_gpus=1) for _ in range(2)]
        settings = {
            "jobs": {"lease_s": LEASE_S},
            "generator": {"min_replicas": 1, "max_replicas": 2, "use_gpu": True},
        }
        with ClusterApplication(folder, settings, {"RAY_ADDRESS": cluster.address}) as application:
            application.cluster = cluster
            application.nodes = {_raylet(node): node for node in nodes}
            yield application
    finally:
        cluster.shutdown()


def node_lost(stage: Stage) -> float:
    """The node of the Generator that makes the song, with all its processes."""
    application = stage.application
    assert isinstance(application, ClusterApplication)
    request_id = stage.ledger.submit(LONG)
    stage.ledger.until_running(request_id)
    raylet = _parent(application.pid_of("Generator"))
    lost_at = time.monotonic()
    application.cluster.remove_node(application.nodes.pop(raylet), allow_graceful=False)
    stage.ledger.until_running_again(request_id)
    recovery_s = time.monotonic() - lost_at
    assert stage.ledger.until_ended(request_id) == "completed"
    node = application.cluster.add_node(num_cpus=0, num_gpus=1)
    application.nodes[_raylet(node)] = node
    return recovery_s


def _raylet(node: Any) -> int:
    (raylet,) = node.all_processes["raylet"]
    return int(raylet.process.pid)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


FAULTS = [Fault("a node lost", node_lost, three_nodes, times=2)]
