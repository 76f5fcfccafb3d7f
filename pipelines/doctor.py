"""Whether the commands can work here: this machine, the store, MLflow and Ray are tried, and for what fails there is a remedy.

Exit code 1 if something that a command needs fails. Nothing is left of what is tried, but an empty folder where the store is to be.

examples:
  python pipelines/doctor.py
  python pipelines/doctor.py --store s3://bucket/ddpm
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here
    from pipelines.cli.opening import begin

    begin()

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Literal

import torch
from packaging.requirements import Requirement

from ddpm_core import storage
from ddpm_core.errors import UserError
from pipelines.cli.command import Outcome, run_command
from pipelines.cli.parsing import parse_alone
from pipelines.cluster.address import check_cluster_address, check_folder, cluster_address
from pipelines.progress import counted, shown
from pipelines.recipes.config import default_store
from pipelines.tracking import open_server
from pipelines.tracking.store import check_place, is_there, tracking_uri

_LITTLE_SHM = 1 << 30
_FULL = 0.95
"""Above it Ray makes no more objects, by default."""
_LATE_S = 60.0
"""S3 refuses whoever is a quarter of an hour off."""


@dataclass(frozen=True, kw_only=True)
class DoctorArgs:
    """Whose store."""

    store: str = field(default_factory=default_store)
    """A folder or s3://bucket/prefix."""


@dataclass(frozen=True)
class Finding:
    """What one thing came to."""

    grade: Literal["ok", "note", "FAIL"]
    """A note costs speed, or a part that few need; what fails keeps a command from working."""
    what: str
    said: str
    """With the remedy, if it is not well."""


def run(args: DoctorArgs) -> Outcome:
    """Try each, and print a line for it."""
    found = []
    for what, examine in _EXAMINED.items():
        for finding in _examined(what, examine, args.store):
            print(f"{finding.grade:5} {finding.what:10} {shown(finding.said)}", flush=True)
            found.append(finding)
    failed = [finding.what for finding in found if finding.grade == "FAIL"]
    made = {"to mend": ", ".join(failed)} if failed else {"all well": f"with {args.store}"}
    told = [vars(finding) for finding in found]
    return Outcome(made=made, metrics={"findings": told}, exit_code=1 if failed else 0)


def _examined(what: str, examine: Callable[[str], Iterator[Finding]], store: str) -> Iterator[Finding]:
    try:
        yield from examine(store)
    except (UserError, OSError, RuntimeError) as error:  # what stands in the way is the finding
        yield Finding("FAIL", what, " ".join(str(error).split()))


def _python(store: str) -> Iterator[Finding]:
    exact = {
        requirement.name: requirement
        for requirement in map(Requirement, metadata.requires("ddpm-pipeline") or [])
        if str(requirement.specifier).startswith("==") and requirement.name in ("torch", "ray", "mlflow")
    }
    there = {name: metadata.version(name) for name in exact}
    versions = ", ".join(f"{name} {version}" for name, version in there.items())
    yield Finding("ok", "python", f"{sys.version.split()[0]} in {sys.executable}; {versions}")
    for name, requirement in exact.items():
        if not requirement.specifier.contains(there[name]):
            yield Finding(
                "note",
                name,
                f"is {there[name]}; tried was {requirement.specifier}: pip install '{name}{requirement.specifier}'",
            )


def _machine(store: str) -> Iterator[Finding]:
    from ray._common.utils import get_system_memory  # heeds a container's limit
    from ray._private.utils import get_used_memory

    cpus, total, used = counted(len(os.sched_getaffinity(0)), "CPU"), get_system_memory(), get_used_memory()
    yield Finding("ok", "machine", f"{cpus}, {total / 1e9:.1f} GB of memory, {(total - used) / 1e9:.1f} of them free")
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        yield Finding("ok", "compiler", "there: long sampling is compiled")
    else:
        yield Finding("note", "compiler", "no C++ compiler: sampling goes as it is written; apt-get install g++")


def _gpu(store: str) -> Iterator[Finding]:
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            value = torch.ones(256, 256, device=f"cuda:{number}", dtype=torch.bfloat16).square().sum().item()
            memory = f"{total / 1e9:.0f} GB, {free / 1e9:.0f} of them free"
            said = f"{torch.cuda.get_device_name(number)}, {memory}, CUDA {torch.version.cuda}"
            yield Finding("ok" if value == 256**2 else "FAIL", "gpu", f"{said}; --train.use-gpu --sample.use-gpu")
    elif shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        yield Finding(
            "FAIL",
            "gpu",
            f"one is here, and torch {torch.__version__} cannot use it; expected a build for CUDA and a driver that is new enough "
            "(nvidia-smi says which CUDA it has): install torch as pytorch.org says for it",
        )
    else:
        faster = "; they multiply bfloat16, too: --train.precision bfloat16 is faster, more so the larger a network is"
        amx = faster if torch.cpu.get_capabilities().get("amx_bf16") else ""
        yield Finding("ok", "gpu", f"none: networks run on the CPUs, in float32{amx}")


def _disk(store: str) -> Iterator[Finding]:
    storage.check_temporary()
    check_folder()
    shm = Path("/dev/shm")
    if shm.exists() and (size := shutil.disk_usage(shm).total) < _LITTLE_SHM:
        yield Finding(
            "note",
            "shm",
            f"/dev/shm has {size / 1e6:.0f} MB, so Ray's objects go to disk; in a container: --shm-size=4g",
        )
    folders = {"disk": None if storage.is_s3(store) else store, "temporary": os.environ.get("RAY_TMPDIR") or "/tmp"}
    for whose, folder in folders.items():
        if folder is None:
            continue
        there = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
        usage = shutil.disk_usage(there)
        full = usage.used / usage.total > _FULL
        remedy = f"; over {_FULL:.0%} is used, where Ray makes no more objects: free some" if full else ""
        yield Finding("note" if full else "ok", whose, f"{usage.free / 1e9:.1f} GB free in {folder}{remedy}")


def _store(store: str) -> Iterator[Finding]:
    check_place(store)
    began = time.perf_counter()
    storage.check_store(store)
    took_s = time.perf_counter() - began
    folder = storage.join(store, f"doctor-{uuid.uuid4().hex}")
    probe = storage.join(folder, "probe")
    try:
        first, second = storage.create_bytes(probe, b"1"), storage.create_bytes(probe, b"2")
        wrong, right = storage.replace_bytes(probe, b"3", b"2"), storage.replace_bytes(probe, b"3", b"1")
        written_s, now_s = next(storage.walk(folder)).changed_s, time.time()
    finally:
        storage.delete(probe)
        storage.delete_rest(folder)
    if (first, second, wrong, right) != (True, False, False, True):
        yield Finding(
            "FAIL",
            "store",
            f"{store} heeds no conditions (If-None-Match, If-Match), so two jobs would write one run; expected a server that does, "
            "as AWS, Ceph and MinIO do",
        )
        return
    yield Finding(
        "ok", "store", f"{store}: written, listed, read, deleted in {took_s * 1e3:.0f} ms; conditions are heeded"
    )
    late_s = now_s - written_s
    remedy = f"; expected less than {_LATE_S:.0f}: timedatectl set-ntp true" if abs(late_s) > _LATE_S else ""
    yield Finding("FAIL" if remedy else "ok", "clock", f"{late_s:+.0f} s beside the store's{remedy}")


def _mlflow(store: str) -> Iterator[Finding]:
    uri = tracking_uri(store)
    if not is_there(store):
        yield Finding("ok", "mlflow", f"{uri} is made by the first command")
        return
    models = open_server(store).client.search_registered_models()
    yield Finding("ok", "mlflow", f"{shown(uri)} answers, {counted(len(models), 'registered model')}")


def _ray(store: str) -> Iterator[Finding]:
    address = cluster_address()
    if address is None:
        yield Finding("ok", "ray", "no cluster was started or named: each command starts one on this machine")
        return
    check_cluster_address(address)
    yield Finding("ok", "ray", f"the cluster at {address} takes this machine's commands")


_EXAMINED: dict[str, Callable[[str], Iterator[Finding]]] = {
    "python": _python,
    "machine": _machine,
    "gpu": _gpu,
    "disk": _disk,
    "store": _store,
    "mlflow": _mlflow,
    "ray": _ray,
}


if __name__ == "__main__":
    run_command(
        DoctorArgs,
        __doc__,
        plan=lambda args: list(_EXAMINED),
        run=run,
        read=parse_alone,
        store="leaves",
    )
