"""The GPUs of a Ray cluster: a Ray task for each share.

A task holds one GPU. Where it runs, what happens when its machine is lost, and how often it is
tried again is Ray's business; a share that is begun again goes on from the rows in the database.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from kdsl import targets
from kdsl.autotune.cli.hardware import Hardware
from kdsl.autotune.fleet.share import Failure, Gathered, Share, Task
from kdsl.autotune.fleet.station import Silent, Station, failure
from kdsl.autotune.measuring import DeviceIll
from kdsl.autotune.session.tuner import Tally, Watch
from kdsl.errors import KdslError, UnsupportedError

RETRIES = 5
"""Times that Ray begins a share again after its machine was lost or its GPU fell ill."""
LOOK_S = 1.0


class Cluster:
    """A connection to a Ray cluster; what Ray prints stays on its machines."""

    def __init__(self, address: str) -> None:
        try:
            ray: Any = import_module("ray")
        except ImportError as error:
            raise UnsupportedError(
                f"--ray needs Ray, which cannot be imported: {error}",
                hint="pip install 'kdsl-kernels[ray]'",
            ) from error
        self.ray = ray
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            raise KdslError(
                f"no Ray cluster answers at {address}: {' '.join(str(error).split())[:300]}",
                hint="`ray start --head` on one machine, `ray start --address HOST:6379` on others",
            ) from error
        resources = ray.cluster_resources()
        self.gpus = int(resources.get("GPU", 0))
        self.processors = int(resources.get("CPU", 1))
        self.models = {name for name in resources if name.startswith("accelerator_type:")}
        if not self.gpus:
            self.close()
            raise KdslError(f"the Ray cluster at {address} has no GPU")

    @property
    def processes(self) -> int:
        """Processors for each GPU."""
        return max(self.processors // self.gpus, 1)

    def close(self) -> None:
        """Let go of the cluster."""
        self.ray.shutdown()

    def run(self, task: Task, gathered: Gathered, hardware: Hardware, watch: Watch) -> None:
        """Do every share. KdslError if one failed in the end; the others are done first."""
        options: dict[str, Any] = {
            "num_gpus": 1,
            "num_cpus": 1,
            "max_retries": RETRIES,
            "retry_exceptions": [DeviceIll],
        }
        if f"accelerator_type:{task.gpu.upper()}" in self.models:
            options["accelerator_type"] = task.gpu.upper()
        remote = self.ray.remote(**options)(do_share)
        waiting = {remote.remote(task, share, hardware): share for share in gathered.shares}
        try:
            while waiting:
                done, _ = self.ray.wait(list(waiting), timeout=LOOK_S)
                for reference in done:
                    self._take(waiting.pop(reference), reference, gathered, watch)
        finally:
            for reference in waiting:
                self.ray.cancel(reference, force=True)
        for failed in gathered.failures.values():
            raise KdslError(failed.what, where=failed.where, hint=failed.hint)

    def _take(self, share: Share, reference: Any, gathered: Gathered, watch: Watch) -> None:
        try:
            said = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            said = (
                failure(cause)
                if isinstance(cause, KdslError)
                else Failure(
                    f"{share.name} was lost in the cluster: {' '.join(str(error).split())[-300:]}",
                    hint="kdsl has to be installed on every machine, in the same version",
                )
            )
        if isinstance(said, Failure):
            gathered.failures[share.number] = said
            return
        gathered.put(share, said)
        watch.begin(said)
        watch.end(said)


def do_share(task: Task, share: Share, hardware: Hardware) -> Tally | Failure:
    """A share, on the GPU that Ray lets this process see."""
    try:
        found = hardware.gpus(targets.get(task.gpu))
        if not found:
            raise KdslError(
                f"the cluster gave a share a GPU that is no {task.gpu}",
                hint=f"a cluster of {task.gpu} alone, or nodes started with their accelerator type",
            )
        with Station(task, hardware, found[0]) as station:
            return station.tune(share, Silent())
    except DeviceIll:
        raise
    except KdslError as error:
        return failure(error)
