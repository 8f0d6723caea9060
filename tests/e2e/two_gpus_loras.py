"""Run by test_loras.py in a process of its own: songs under four adapters on a cluster that pretends to have two GPUs.

Writes the adapters that each replica has loaded at the end, by name, to adapters.json in the folder it is given.
"""

import dataclasses
import json
import sys
import time
import uuid
from pathlib import Path

import ray
from ray import serve

from acestep_engine.params import Adapter, GenerationParams
from deployments.generator import REPORT_INTERVAL_S
from deployments.messages import JOB_MANAGER, Submission
from serve_app.app import build_app
from serve_app.settings import GeneratorSettings, Settings
from tests.nano_lora import save_nano_lora

NAMES = ("a", "b", "c", "d")
ROUNDS = 6
SONG = GenerationParams("piano", "", 1.0, seed=7, steps=2, guidance_scale=1.0)


def main(folder: Path) -> None:
    ray.init(
        "local", num_cpus=2, num_gpus=2, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False
    )
    serve.start(proxy_location="Disabled")
    settings = Settings(
        model="nano",
        state_dir=folder / "state",
        output_dir=folder,
        loras={name: str(save_nano_lora(folder / name, seed)) for seed, name in enumerate(NAMES)},
        generator=GeneratorSettings(min_replicas=2, use_gpu=True),
    )
    serve.run(build_app(settings), name="two-gpus", route_prefix=None)
    handle = serve.get_deployment_handle(JOB_MANAGER, "two-gpus")
    deadline = time.monotonic() + 60
    while len(handle.service_status.remote().result().replicas) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    adapters = [Adapter(info.name, info.digest, info.path) for info in handle.loras.remote().result()]
    for _ in range(ROUNDS):
        songs = [SONG, SONG, *(dataclasses.replace(SONG, adapter=adapter) for adapter in adapters)]
        ids = [uuid.uuid4().hex for _ in songs]
        for request_id, song in zip(ids, songs, strict=True):
            handle.submit.remote(Submission(request_id, (song,), "wav", {})).result()
        for request_id in ids:
            assert handle.wait.remote(request_id, 60.0).result().outcome == "completed"
    time.sleep(2 * REPORT_INTERVAL_S)
    names = {adapter.digest: adapter.name for adapter in adapters}
    replicas = handle.service_status.remote().result().replicas
    (folder / "adapters.json").write_text(json.dumps([[names[one] for one in state.adapters] for state in replicas]))
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
