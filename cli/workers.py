"""Workers of a run: local processes, or those of a dask scheduler."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from .commands import F, option

HOST = "127.0.0.1"
"""Schedulers and dashboards started by geolabel listen on this machine only."""

CONNECT_S = 30.0
"""Timeout in seconds for a scheduler."""

WITHOUT_S = 120
"""Seconds without any local worker after which a run ends: dask replaces a worker that dies, except during its
start."""

WARM = tuple(
    f"geolabel.{name}" for name in ("models.loading", "models.cam", "models.on_onnx", "extraction.passes", "models.sam")
)
"""Modules that tasks import."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExecutorOptions:
    """Workers, as given on the command line."""

    workers: int | None = None
    scheduler: str | None = None
    worker_memory: str = "auto"
    tls_ca_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    @property
    def tls(self) -> dict[str, str]:
        """The given TLS options."""
        return {name: value for name in ("tls_ca_file", "tls_cert", "tls_key") if (value := getattr(self, name))}


def cluster_options(command: F) -> F:
    """Add the options for workers."""
    for decorate in (
        option(
            "--tls-key",
            group="machine",
            rare=True,
            type=click.Path(dir_okay=False),
            help="Private key for a tls:// scheduler.",
        ),
        option(
            "--tls-cert",
            group="machine",
            rare=True,
            type=click.Path(dir_okay=False),
            help="Certificate for a tls:// scheduler.",
        ),
        option(
            "--tls-ca-file",
            group="machine",
            rare=True,
            type=click.Path(dir_okay=False),
            help="Certificate authority for a tls:// scheduler.",
        ),
        option(
            "--worker-memory",
            group="machine",
            rare=True,
            default="auto",
            show_default=True,
            metavar="SIZE",
            help="Memory limit of each of the --workers, such as 4GB; auto divides the memory of the machine.",
        ),
        option(
            "--scheduler",
            group="machine",
            metavar="ADDRESS|FILE",
            help="Dask scheduler to run on: tcp://HOST:8786, tls://HOST:8786, or a scheduler file.",
        ),
        option(
            "--workers",
            group="machine",
            type=click.IntRange(min=1),
            metavar="N",
            help="Number of local worker processes: one per core, or one per GPU.",
        ),
    ):
        command = decorate(command)
    return command


@contextmanager
def at_work(given: dict[str, Any]) -> Iterator[None]:
    """Start or connect the workers of a command; without options for them, the run uses this process.

    Parameters
    ----------
    given
        Options of the command; those of `ExecutorOptions` are removed, and ``device`` is read.

    Raises
    ------
    OptionError
        If options contradict each other.
    ClusterError
        If the scheduler does not answer.
    """
    from geolabel.errors import OptionError

    asked = ExecutorOptions(**{field.name: given.pop(field.name) for field in fields(ExecutorOptions)})
    if asked.workers and asked.scheduler:
        raise OptionError("--workers starts processes here and --scheduler uses those of a cluster: give one of them")
    if asked.workers and ":" in str(given.get("device")):
        raise OptionError(
            f"--workers gives each process its own GPU, but --device {given['device']} is a single one: give "
            "--device cuda, with CUDA_VISIBLE_DEVICES for some of the GPUs; or omit --workers"
        )
    if asked.tls and not asked.scheduler:
        raise OptionError("--tls-ca-file, --tls-cert and --tls-key are for a --scheduler")
    with ExitStack() as stack:
        if asked.workers:
            import dask

            from geolabel.engine.executors import PATIENCE

            stack.enter_context(dask.config.set({PATIENCE: WITHOUT_S}))
            threads = given.get("threads") or 1
            stack.enter_context(_local(asked.workers, asked.worker_memory, str(given.get("device")), threads))
        elif asked.scheduler:
            stack.enter_context(_remote(asked.scheduler, asked.tls, given.get("threads")))
        yield


@contextmanager
def _local(count: int, memory: str, device: str, threads: int) -> Iterator[None]:
    import distributed

    from geolabel.engine import executors
    from geolabel.errors import OptionError

    gpus = _gpus(device)
    try:
        cluster = distributed.LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=count,
            threads_per_worker=executors.LOCAL_WORKERS if gpus else threads,
            processes=True,
            memory_limit=memory,
            host=HOST,
            dashboard_address=f"{HOST}:0",
            silence_logs=logging.ERROR,
            resources={executors.GPU: 1} if gpus else None,
        )
    except ValueError as error:
        raise OptionError(f"worker memory {memory!r}: {error}; give a size such as 4GB, or auto") from error
    with cluster, distributed.Client(cluster) as client:  # type: ignore[no-untyped-call]
        log.info("dashboard at %s", cluster.dashboard_link)
        _settle(client, gpus, local=True, threads=threads)
        _warm_up(client)
        yield


@contextmanager
def _remote(scheduler: str, tls: dict[str, str], threads: int | None) -> Iterator[None]:
    import distributed

    from geolabel.errors import ClusterError

    address: dict[str, Any] = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    if tls:
        names = {"tls_ca_file": "tls_ca_file", "tls_cert": "tls_client_cert", "tls_key": "tls_client_key"}
        options = {names[name]: value for name, value in tls.items()}
        address["security"] = distributed.Security(  # type: ignore[no-untyped-call]
            require_encryption=True, **options
        )
    try:
        client = distributed.Client(**address, timeout=CONNECT_S, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, ValueError, TypeError, KeyError) as error:
        raise ClusterError(
            f"no scheduler answers at {scheduler} ({error}): start one with dask scheduler, and give its address "
            "or the file that it writes with --scheduler-file"
        ) from error
    with client, client.as_current():  # set only when connected: otherwise it would stay the default client
        _check_versions(client)
        _settle(client, 0, local=False, threads=threads)
        yield


def _warm_up(client: Any) -> None:
    """Import the modules that tasks need in every worker, while the run is planned."""
    import distributed

    from geolabel.engine import worker

    for address in client.scheduler_info(n_workers=-1)["workers"]:
        warming = client.submit(worker.warm_up, WARM, workers=[address], pure=False)
        distributed.fire_and_forget(warming)  # type: ignore[no-untyped-call]


def _gpus(device: str) -> int:
    if device.partition(":")[0] not in ("auto", "cuda"):
        return 0
    from geolabel.devices import count_gpus

    return count_gpus()


def _check_versions(client: Any) -> None:
    """Refuse workers with different versions, whose results would differ."""
    from geolabel.engine import executors, worker
    from geolabel.errors import ClusterError

    if not client.scheduler_info(n_workers=-1)["workers"]:
        click.echo("geolabel: the scheduler has no workers yet; waiting for them", err=True)
    here = worker.versions()["geolabel"]
    try:
        found = executors.everywhere(worker.versions)
    except ModuleNotFoundError as error:
        raise ClusterError(f"the workers lack a package ({error}): install geolabel {here} there") from error
    different = {address: versions for address, versions in found.items() if versions["geolabel"] != here}
    if different:
        address, versions = next(iter(different.items()))
        raise ClusterError(
            f"the worker {address} has geolabel {versions['geolabel']}, here it is {here}: install the same everywhere"
        )
    if len({tuple(versions.values()) for versions in found.values()}) > 1:
        raise ClusterError(f"the workers have different versions, so their results would differ: {found}")


def _settle(client: Any, gpus: int, *, local: bool, threads: int | None) -> None:
    """Configure every worker, present and future."""
    import distributed

    class Settle(distributed.WorkerPlugin):
        name = "geolabel"

        def setup(self, worker: Any) -> None:
            from geolabel.engine.worker import settle

            number = worker.name if isinstance(worker.name, int) else 0
            settle(number, gpus=gpus, local=local, threads=threads)

    client.register_plugin(Settle())
