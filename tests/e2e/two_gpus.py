"""Run by test_gpus.py in a process of its own: the application on a cluster that pretends to have two GPUs.

Writes the GPUs of each Generator replica to gpus.json in the folder it is given.
"""

import json
import sys
import time
from pathlib import Path

import ray
from ray import serve

from deployments.messages import JOB_MANAGER
from serve_app.app import build_app
from serve_app.settings import GeneratorSettings, Settings


def main(state: Path) -> None:
    ray.init(
        "local", num_cpus=1, num_gpus=2, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False
    )
    serve.start(proxy_location="Disabled")
    settings = Settings(
        model="nano", state_dir=state, output_dir=state, generator=GeneratorSettings(min_replicas=2, use_gpu=True)
    )
    serve.run(build_app(settings), name="two-gpus", route_prefix=None)
    handle = serve.get_deployment_handle(JOB_MANAGER, "two-gpus")
    deadline = time.monotonic() + 30
    while len(replicas := handle.service_status.remote().result().replicas) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    (state / "gpus.json").write_text(json.dumps([replica.gpu_ids for replica in replicas]))
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
