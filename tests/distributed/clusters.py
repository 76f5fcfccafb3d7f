"""Every command on clusters of several nodes: placed, shared, told; and the same images as on one machine.

    .venv/bin/python tests/distributed/clusters.py [CASE ...]

The nodes are those of ray.cluster_utils.Cluster, all on this machine, with as many CPUs and GPUs as they declare; the store lies
on a local S3 server. Cases, all of them unless some are named:

    small      2 nodes of 2 CPUs: the whole pipeline; two samplings, a training and a scheduled tick at once
    uneven     a head of 1 CPU and a node of 3: the whole pipeline
    wide       2 nodes of 8 declared CPUs: every command with its defaults
    gpus       a head of 1 CPU and two nodes with 2 CPUs and one declared GPU each: placement alone
    refusals   what no node can hold, a local store, a local source, a node that does not reach the store
    spot       a head of 0 CPUs and two nodes of 1: the one that trains is said to be taken away
    growing    a head of 1 CPU and an autoscaler that adds nodes with a GPU: both of Ray's versions
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from moto.server import ThreadedMotoServer
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION as PREEMPTION

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import read_weights, step_of
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.data.images import encode_png
from pipelines.cluster.placement import Ask, cluster_nodes, for_sampling, for_training
from pipelines.cluster.tasks import share
from pipelines.recipes.config import SampleStage, TrainStage

ROOT = Path(__file__).parents[2]
OF_TRAINING = [
    "--train.steps",
    "60",
    "--train.batch-size",
    "32",
    "--train.checkpoint-every",
    "30",
    "--unet.base-channels",
    "16",
]
OF_SAMPLING = ["--sample.num-images", "96", "--sample.block-size", "16"]
OF_EVALUATION = [
    "--evaluate.num-images",
    "96",
    "--evaluate.bits-per-dim-images",
    "32",
    "--evaluate.bits-per-dim-steps",
    "5",
]
SMALL = [*OF_TRAINING, *OF_SAMPLING, *OF_EVALUATION]
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
)
FIGURES = ("fd_random_conv", "floor", "bits_per_dim")
DASHBOARD, KIND = 8297, "ray.io/accelerator-type=H100"


@dataclass
class Ended:
    """What a command said."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def told(self) -> dict[str, Any]:
        """The last line of stdout, of --json."""
        found: dict[str, Any] = json.loads(self.out.strip().splitlines()[-1])
        return found


@dataclass
class Bench:
    """A place to run commands in: a folder, an S3 server, and the environment of commands and nodes."""

    folder: Path
    bucket: str = "s3://clusters"
    env: dict[str, str] = field(default_factory=dict)
    address: str | None = None
    alone: dict[str, Any] = field(default_factory=dict)
    """What one machine made."""

    def start(self, script: str, *args: str) -> subprocess.Popen[str]:
        """A command, on the cluster that is up, else on a Ray of its own."""
        command = [sys.executable, str(ROOT / f"pipelines/{script}.py"), *args]
        env = {**os.environ, **self.env, **({"RAY_ADDRESS": self.address} if self.address else {})}
        return subprocess.Popen(command, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def script(self, script: str, *args: str, timeout_s: float = 400) -> Ended:
        """A command to its end."""
        began = time.monotonic()
        return ended(self.start(script, *args), began, timeout_s)


def ended(process: subprocess.Popen[str], began: float, timeout_s: float = 400) -> Ended:
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
        raise RuntimeError(f"not ended after {timeout_s} s:\n{out[-2000:]}\n{err[-3000:]}") from None
    return Ended(process.returncode, out, err, time.monotonic() - began)


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    folder = Path(tempfile.mkdtemp(prefix="clusters-"))
    env = {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "RAY_AUTH_MODE": "disabled",  # whatever token lies in the home folder
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_DATA_HOME": str(folder / "data"),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # a job's python is the nodes'
    }
    os.environ.update(env)  # the nodes', which are started by this process, and this process's own client
    import boto3

    boto3.client("s3").create_bucket(Bucket="clusters")
    try:
        yield Bench(folder, env=env)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def cluster(where: Bench, *nodes: dict[str, Any]) -> Iterator[Cluster]:
    """Nodes, the first of them the head; commands find them by RAY_ADDRESS."""
    head, *others = ({"object_store_memory": 200 << 20, "num_gpus": 0, **node} for node in nodes)
    started = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **head})
    try:
        for node in others:
            started.add_node(**node)
        where.address = started.address
        yield started
    finally:
        where.address = None
        started.shutdown()


def uris(folder: str) -> list[str]:
    """Of all files below a folder."""
    return [uri for uri, _ in storage.list_files(folder)]


def images(set_uri: str) -> dict[str, str]:
    """The sha256 of each block below a sample set."""
    folder = set_uri.rsplit("/", 1)[0]
    blocks = sorted(uri for uri in uris(folder) if uri.endswith(".tar"))
    return {uri.rsplit("/", 1)[1]: hashlib.sha256(storage.read_bytes(uri)).hexdigest() for uri in blocks}


def must(holds: bool, what: str, done: Ended | None = None) -> None:
    """Say that it holds, or end."""
    if not holds:
        raise RuntimeError(what + (f":\n{done.out[-3000:]}\n{done.err[-5000:]}" if done else ""))
    print(f"    {what}", flush=True)


def whole_line(where: Bench, name: str) -> dict[str, Any]:
    """workflow.py in small; what it made."""
    done = where.script("workflow", "digits", *SMALL, "--store", f"{where.bucket}/{name}", "--json")
    must(done.code == 0, f"workflow.py ends with 0, in {done.seconds:.0f} s", done)
    return done.told


def same_as_one_machine(where: Bench, made: dict[str, Any]) -> None:
    """The images, byte for byte, and the figures: the threads are as many."""
    ours, theirs = images(made["grid"]), images(where.alone["grid"])
    must(theirs.items() <= ours.items(), f"{len(theirs)} blocks of images equal one machine's, byte for byte")
    said = ", ".join(f"{name} {made[name]:.4g}" for name in FIGURES)
    must(all(made[name] == where.alone[name] for name in FIGURES), f"and so do {said}")


def wait_until(holds: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.5)


def small(where: Bench) -> None:
    with cluster(where, {"num_cpus": 2, "include_dashboard": True, "dashboard_port": DASHBOARD}, {"num_cpus": 2}):
        made = whole_line(where, "small")
        done = where.script(
            "train",
            "digits",
            *OF_TRAINING,
            "--train.num-workers",
            "1",
            "--name",
            "one",
            "--store",
            f"{where.bucket}/small",
        )
        must(done.code == 0, f"train.py with one worker ends with 0, in {done.seconds:.0f} s", done)
        side_by_side(where)
    same_as_one_machine(where, made)


def side_by_side(where: Bench) -> None:
    """A training that holds every CPU; beside it two samplings and a scheduled tick, which must not wait for its end."""
    store = f"{where.bucket}/small"
    began = time.monotonic()
    long = ["--train.steps", "100000", "--train.num-workers", "4", "--name", "long"]
    training = where.start("train", "digits", *OF_TRAINING, *long, "--store", store)
    wait_until(lambda: bool(CheckpointStore(f"{store}/runs/long").uris()), "the training's first checkpoint", 120)
    model = ["--store", store, "--model", "models:/ddpm-digits@champion"]
    commands = {
        f"sampling {seed}": where.start("sample", "digits", *model, "--sample.first-seed", str(seed), *OF_SAMPLING)
        for seed in (1000, 2000)
    }
    beside = replace(where, env={**where.env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{DASHBOARD}"})
    scheduled = ["--", "python", "pipelines/sample.py", "digits", *model[2:], "--num-images", "32"]
    added = beside.script("schedule", "add", "tick", "--store", store, *scheduled)
    must(added.code == 0, "a schedule is added", added)
    commands["a scheduled tick"] = beside.start("schedule", "run-now", "tick", "--store", store)
    for what, process in commands.items():
        done = ended(process, began, 300)
        must(done.code == 0, f"{what}, beside a training on every CPU, has ended after {done.seconds:.0f} s", done)
    must(training.poll() is None, "the training goes on")
    training.send_signal(signal.SIGTERM)
    done = ended(training, began, 120)
    must(done.code == 143 and "was saved" in done.err, "and is ended by SIGTERM, its last step saved", done)


def uneven(where: Bench) -> None:
    with cluster(where, {"num_cpus": 1}, {"num_cpus": 3}):
        made = whole_line(where, "uneven")
    same_as_one_machine(where, made)


def wide(where: Bench) -> None:
    store = ["--store", f"{where.bucket}/wide"]
    with cluster(where, {"num_cpus": 8}, {"num_cpus": 8}):
        made = whole_line(where, "wide")
        sweep = ["--sweep.num-trials", "2", "--sweep.num-images", "32", "--sweep.num-rungs", "1"]
        for script, *args in (
            ("shard",),
            ("train", *OF_TRAINING),
            ("sweep", *OF_TRAINING, *sweep),
            ("sample", *OF_SAMPLING),
            ("evaluate", *OF_SAMPLING, *OF_EVALUATION),
        ):
            done = where.script(script, "digits", *args, *store)
            must(done.code == 0, f"{script}.py ends with 0, in {done.seconds:.0f} s", done)
    same_as_one_machine(where, made)


def gpus(where: Bench) -> None:
    """The GPUs are declared, not there: what asks for one is placed, and would fail once it used it."""
    of_a_kind = {"num_cpus": 2, "num_gpus": 1, "labels": dict([KIND.split("=")])}
    with cluster(where, {"num_cpus": 1}, {"num_cpus": 2, "num_gpus": 1}, of_a_kind):
        gpu = ["digits", *OF_TRAINING, "--train.use-gpu", "--store", f"{where.bucket}/gpus", "--train.num-workers"]
        told = (
            "is 3; there are 2 GPUs and 5 CPUs on 3 nodes, the largest is .* 1 GPU, and each asks for 1 CPU and 1 GPU"
        )
        refused(where, "train", [*gpu, "3"], rf"train.num-workers {told} of one node: 2 fit")
        refused(where, "train", [*gpu, "1", "--train.threads", "3"], r"asks for 3 CPUs and 1 GPU of one node: 0 fit")
        refused(where, "train", [*gpu, "2", "--train.node-labels", KIND], rf"of a node with {KIND}: 1 fit")
        ray.init(where.address, logging_level="ERROR", log_to_driver=False)
        try:
            placed("two workers", for_training(TrainStage(num_workers=2, use_gpu=True)))
            placed(
                "one on an H100", for_training(TrainStage(use_gpu=True, node_labels=("ray.io/accelerator-type=H100",)))
            )
            seen = {
                node
                for _, node in share(_where, range(8), replace(for_sampling(SampleStage(use_gpu=True)), what="where"))
            }
            must(len(seen) == 2, "tasks with a GPU run on both nodes that have one")
        finally:
            ray.shutdown()


def placed(what: str, ask: Ask) -> None:
    """As Ray Train asks for its workers."""
    labels = [dict(ask.labels)] * ask.count
    group = ray.util.placement_group([ask.resources] * ask.count, bundle_label_selector=labels)
    must(group.wait(30), f"{what}: placed")
    ray.util.remove_placement_group(group)


def _where(number: int) -> str:
    time.sleep(0.5)
    return str(ray.get_runtime_context().get_node_id())


def refused(where: Bench, script: str, args: list[str], pattern: str) -> None:
    """One line, exit code 2, soon, and nothing written."""
    before = len(storage.list_files(where.bucket))
    done = where.script(script, *args)
    lines = [line for line in done.err.strip().splitlines() if "network_util" not in line]  # Ray's, without a network
    must(
        done.code == 2 and len(lines) == 1 and bool(re.search(pattern, lines[0])),
        f"{script}.py in {done.seconds:.0f} s: {lines[-1] if lines else ''}",
        done,
    )
    must(done.seconds < 30 and len(storage.list_files(where.bucket)) == before, "  and nothing is written")


def refusals(where: Bench) -> None:
    here = where.folder / "here"
    with cluster(where, {"num_cpus": 2}, {"num_cpus": 2}) as nodes:
        for script in ("shard", "train", "sweep", "sample", "evaluate", "workflow"):
            refused(
                where,
                script,
                ["digits", "--store", str(here)],
                r"store is .*/here, a place on one machine, and the cluster has 2 nodes",
            )
        must(not here.exists(), "the folder has not been made")
        raw = ["mnist", "--data.source", str(where.folder), "--store", f"{where.bucket}/refusals"]
        (where.folder / "0.png").write_bytes(encode_png(np.zeros((28, 28, 1), dtype=np.uint8)))
        for script in ("shard", "train", "sweep", "workflow"):
            refused(where, script, raw, r"data.source is .*, a place on one machine, and the cluster has 2 nodes")
        digits = ["digits", "--store", f"{where.bucket}/refusals"]
        refused(
            where,
            "train",
            [*digits, "--train.threads", "3"],
            r"train.num-workers is 2; there are 4 CPUs on 2 nodes, .* each asks for 3 CPUs of one node: 0 fit",
        )
        refused(
            where,
            "sample",
            [*digits, "--sample.threads", "3"],
            r"sample cannot run; .* each asks for 3 CPUs of one node",
        )
        refused(
            where,
            "sweep",
            [*digits, "--sweep.max-concurrent", "5"],
            r"sweep.max-concurrent is 5; there are 4 CPUs on 2 nodes",
        )
        nodes.add_node(
            num_cpus=1,
            env_vars={"AWS_SECRET_ACCESS_KEY": "", "AWS_ACCESS_KEY_ID": "", "AWS_EC2_METADATA_DISABLED": "true"},
        )
        refused(where, "shard", digits, r"node .* cannot use the store: .*credentials")


def spot(where: Bench) -> None:
    """The node on which a training runs is about to be taken away. The head has no CPU."""
    store = f"{where.bucket}/spot"
    args = [
        "digits",
        *OF_TRAINING,
        "--train.steps",
        "600",
        "--train.checkpoint-every",
        "50",
        "--train.num-workers",
        "1",
    ]
    calm = where.script("train", *args, "--name", "calm", "--store", store, "--json")
    must(calm.code == 0, f"undisturbed, on one machine, 600 steps take {calm.seconds:.0f} s", calm)
    with cluster(where, {"num_cpus": 0}, {"num_cpus": 1}, {"num_cpus": 1}) as nodes:
        began, run = time.monotonic(), f"{store}/runs/noticed"
        training = where.start("train", *args, "--name", "noticed", "--store", store, "--json")
        wait_until(lambda: last_step(run) >= 100, "step 100", 120)
        node = worker_s_node(where)
        deadline_ms = int((time.time() + 30) * 1000)
        accepted, why = GcsClient(where.address).drain_node(node, PREEMPTION, "spot", deadline_ms)
        noticed, before = time.monotonic(), last_step(run)
        must(accepted, f"its node is said to go in 30 s, at step {before} or later{why}")
        wait_until(lambda: last_step(run) % 50 != 0, "the step that is saved", 30)
        saved, after_s = last_step(run), time.monotonic() - noticed
        wait_until(lambda: last_step(run) > saved, "a further step", 60)
        must(
            worker_s_node(where) != node,
            f"step {saved} stands after {after_s:.1f} s, "
            f"and the next ones, made on the other node, after {time.monotonic() - noticed:.1f} s",
        )
        nodes.remove_node(next(each for each in nodes.worker_nodes if each.node_id == node), allow_graceful=False)
        done = ended(training, began)
    must(done.code == 0, f"it ends with 0, in {done.seconds:.0f} s", done)
    print("".join(f"    {line}\n" for line in done.err.splitlines() if "step" in line or "node" in line))
    ours, theirs = (read_weights(each.told["checkpoint"]).sha256 for each in (done, calm))
    must(ours == theirs, "with the weights of the undisturbed run, to the bit", done)


def last_step(run: str) -> int:
    return max((step_of(uri) for uri in CheckpointStore(run).uris()), default=0)


def worker_s_node(where: Bench) -> str:
    """The id of the node on which training's only worker is."""
    ray.init(where.address, logging_level="ERROR", log_to_driver=False)
    try:
        rows = ray._private.state.actors().values()
        (node,) = (
            row["Address"]["NodeID"]
            for row in rows
            if "TrainWorker" in row["ActorClassName"] and row["State"] == "ALIVE"
        )
    finally:
        ray.shutdown()
    return str(node)


def growing(where: Bench) -> None:
    for version in (1, 2):
        with autoscaled(where, version):
            store, model = f"{where.bucket}/growing-{version}", ["--model", where.alone["checkpoint"]]
            wide = ["digits", *model, *OF_SAMPLING, "--store", store, "--sample.threads", "2"]
            done = where.script("sample", *wide)
            said = [line for line in done.err.splitlines() if "waiting for 2 CPUs" in line]
            must(done.code == 0, f"version {version}: sample.py ends in {done.seconds:.0f} s", done)
            for line in said:
                print(f"    {line}")
            ray.init(where.address, logging_level="ERROR", log_to_driver=False)
            try:
                wait_until(lambda: any(node.resources.get("CPU") == 4 for node in cluster_nodes()), "a larger node", 60)
                print("    for which a node of 4 CPUs was started")
                (row,) = share(_where, [0], replace(for_sampling(SampleStage(use_gpu=True)), what="where"))
                must(bool(row[1]), "a cluster of no GPU gets one when it is asked for")
            finally:
                ray.shutdown()
        if version == 2:
            with autoscaled(where, version):
                large = ["--train.num-workers", "1", "--train.threads", "64", "--name", "large"]
                done = where.script("train", "digits", *OF_TRAINING, *large, "--store", store)
                line = done.err.strip().splitlines()[-1]
                told = "no node type of the cluster's autoscaler has 64 CPUs of one node; the largest is"
                must(done.code == 2 and told in line, f"train.py in {done.seconds:.0f} s: {line}", done)


@contextlib.contextmanager
def autoscaled(where: Bench, version: int) -> Iterator[None]:
    """A head of 1 CPU, and an autoscaler that starts nodes of 4 CPUs or of 2 CPUs and a declared GPU."""
    types = {"big": {"CPU": 4}, "gpu": {"CPU": 2, "GPU": 1}}
    head = "ray.head.default"
    config = {
        "cluster_name": "growing",
        "max_workers": 4,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            **({"launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID} if version == 2 else {}),
        },
        "available_node_types": {
            head: {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            **{
                name: {
                    "resources": {**resources, "object_store_memory": 200 << 20},
                    "node_config": {},
                    "max_workers": 2,
                }
                for name, resources in types.items()
            },
        },
        "head_node_type": head,
        "idle_timeout_minutes": 5,
        "upscaling_speed": 1.0,
        "auth": {},
        **{name: {} for name in ("docker", "file_mounts")},
        **{name: [] for name in COMMANDS},
    }
    port = 6391
    config["provider"]["gcs_address"] = f"{ray.util.get_node_ip_address()}:{port}"  # else its nodes look for port 6379
    path = where.folder / "autoscaler.json"
    path.write_text(json.dumps(config))
    # As cloud launchers do, the head is told its type.
    env = {**os.environ, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_NODE_TYPE_NAME": head}
    if version == 2:
        node = {"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
        env |= {"RAY_enable_autoscaler_v2": "1", **node}
    ray_ = ROOT / ".venv/bin/ray"
    start = [ray_, "start", "--head", f"--port={port}", "--num-cpus=1", f"--object-store-memory={200 << 20}"]
    subprocess.run(
        [*start, "--include-dashboard=false", f"--autoscaling-config={path}"], env=env, check=True, capture_output=True
    )
    where.address = f"127.0.0.1:{port}"
    try:
        yield
    finally:
        where.address = None
        subprocess.run([ray_, "stop", "--force"], check=False, capture_output=True)


CASES: dict[str, Callable[[Bench], None]] = {
    case.__name__: case for case in (small, uneven, wide, gpus, refusals, spot, growing)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    wanted = parser.parse_args().cases or list(CASES)
    with bench() as where:
        print("one machine, to compare with", flush=True)
        where.alone = whole_line(where, "alone")
        run = where.alone["grid"].split("/samples/")[0] + "/runs"
        folder = {uri.split("/checkpoints/")[0] for uri in uris(run) if "/checkpoints/" in uri}.pop()
        where.alone["checkpoint"] = CheckpointStore(folder).uris()[-1]
        for name in wanted:
            print(f"{name}: {(CASES[name].__doc__ or '').strip()}", flush=True)
            CASES[name](where)
    print("all of it holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
