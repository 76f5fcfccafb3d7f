"""infra/aws/cluster.yaml's node types, as they stand, on Ray's fake provider: up for a training, down after it.

    .venv/bin/python tests/distributed/aws_nodes.py [CASE ...]

A head of 2 CPUs, Ray's second autoscaler, and a training whose workers ask for as many CPUs as only the GPU types have; the GPUs
are declared, nobody uses them. Nodes are processes of this machine, in namespaces of their own, for which it needs root. Idle nodes
go after half a minute, where the file says ten. Cases, all of them unless some are named:

    types         the file's own: two nodes are started for the training, and ended
    priorities    Ray's way with two types, a spot machine at a higher priority, and AWS refuses spot machines: what Ray 2.60 makes
                  of it, which is why pipelines/cluster/spot_first.py is there
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import yaml
from clusters import COMMANDS, OF_TRAINING, Bench, bench, ended, must, wait_until
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

ROOT = Path(__file__).parents[2]
INSIDE, LOG, REFUSED = "AWS_NODES_INSIDE", "AWS_NODES_LOG", "AWS_NODES_REFUSED"
HEAD, PORT = "ray.head.default", 6379  # the fake provider knows no other
SPACES = ["--pid", "--mount", "--net", "--ipc", "--fork", "--kill-child", "--mount-proc"]
# Ray takes the address of the way out for the node's own.
NETWORK = """
ip link set lo up; ip link add out type veth peer name in; ip link set in up; ip link set out up; ip addr add 10.89.0.1/24 dev out
ip route add default via 10.89.0.2; mount -t tmpfs tmpfs /dev/shm
"""


FILE: dict[str, Any] = yaml.safe_load((ROOT / "infra/aws/cluster.yaml").read_text())
GPU: dict[str, Any] = {
    name: {**node, "node_config": {}, "resources": {**node["resources"], "object_store_memory": 200 << 20}}
    for name, node in FILE["available_node_types"].items()
    if name != "head"
}


class Provider(FakeMultiNodeProvider):  # type: ignore[misc]
    """Writes down what is asked of it; has no machine of one type, if the environment says so."""

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: Any, labels: Any
    ) -> None:
        kind = tags[TAG_RAY_USER_NODE_TYPE]
        if kind == os.environ.get(REFUSED):
            note("refused", kind, count)
            raise NodeLaunchException("InsufficientInstanceCapacity", f"no {kind}", None)
        super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)
        note("started", kind, count)

    def terminate_node(self, node_id: str) -> None:
        kind = self.node_tags(node_id)[TAG_RAY_USER_NODE_TYPE]
        super().terminate_node(node_id)
        note("ended", kind, 1)


def note(what: str, kind: str, count: int) -> None:
    with open(os.environ[LOG], "a") as file:
        file.write(json.dumps({"at": time.time(), "what": what, "kind": kind, "count": count}) + "\n")


def noted(where: Bench) -> list[dict[str, Any]]:
    path = where.folder / "provider.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def total(where: Bench, what: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row in noted(where):
        if row["what"] == what:
            counts[row["kind"]] += row["count"]
    return counts


def file_for(where: Bench, of_workers: dict[str, Any]) -> Path:
    """infra/aws/cluster.yaml as the fake provider needs it."""
    provider = {
        "type": "external",
        "module": "aws_nodes.Provider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "gcs_address": f"{ray.util.get_node_ip_address()}:{PORT}",
    }
    made = {
        **{name: FILE[name] for name in ("cluster_name", "max_workers", "upscaling_speed")},
        "idle_timeout_minutes": 0.5,
        "provider": provider,
        "available_node_types": {HEAD: {**FILE["available_node_types"]["head"], "node_config": {}}, **of_workers},
        "head_node_type": HEAD,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in COMMANDS},
    }
    path = where.folder / "cluster.json"
    path.write_text(json.dumps(made))
    return path


@contextlib.contextmanager
def head(where: Bench, file: Path, refused: str = "") -> Iterator[None]:
    (where.folder / "provider.jsonl").unlink(missing_ok=True)
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/distributed'}",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_NODE_TYPE_NAME": HEAD,
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        LOG: str(where.folder / "provider.jsonl"),
        REFUSED: refused,
    }
    ray_ = ROOT / ".venv/bin/ray"
    options = [f"--port={PORT}", "--num-cpus=2", f"--object-store-memory={200 << 20}", "--include-dashboard=false"]
    start = [ray_, "start", "--head", *options, f"--autoscaling-config={file}"]
    subprocess.run(start, env=env, check=True, capture_output=True)
    where.address = f"{ray.util.get_node_ip_address()}:{PORT}"
    try:
        yield
    finally:
        where.address = None
        subprocess.run([ray_, "stop", "--force"], check=False, capture_output=True)  # sees its own namespace alone


def train(where: Bench, name: str) -> subprocess.Popen[str]:
    """Two workers that the head has no room for."""
    wide = ["--train.num-workers", "2", "--train.threads", "4", "--name", name]
    return where.start("train", "digits", *OF_TRAINING, *wide, "--store", f"{where.bucket}/{name}")


def types(where: Bench) -> None:
    """As they stand in the file."""
    with head(where, file_for(where, GPU)):
        began, at = time.monotonic(), time.time()
        process = train(where, "types")
        wait_until(lambda: total(where, "started")["gpu"] >= 2, "two nodes", 180)
        print(f"{time.monotonic() - began:8.1f} s  two nodes with a GPU are started")
        done = ended(process, began, 600)
        must(done.code == 0, f"the training ends with 0, {done.seconds:.0f} s after it was asked for", done)
        for line in done.err.splitlines():
            if re.search(r"waiting|autoscaler", line):
                print(f"            | {line[:160]}")
        over = time.monotonic()
        wait_until(lambda: total(where, "ended") == total(where, "started"), "the nodes' end", 240)
        print(f"{time.monotonic() - over:8.1f} s  later all of them are ended (half a minute of it idle)")
        for row in noted(where):
            print(f"            | {row['at'] - at:6.1f} s  {row['what']} {row['count']} {row['kind']}")


def priorities(where: Bench) -> None:
    """Two types, and AWS has no spot machine."""
    two = {"gpu-spot": {**GPU["gpu"], "priority": 10}, "gpu-on-demand": {**GPU["gpu"], "priority": 0}}
    with head(where, file_for(where, two), refused="gpu-spot"):
        began = time.monotonic()
        process = train(where, "priorities")
        wait_until(lambda: bool(total(where, "refused")), "a request", 180)
        time.sleep(60)
        asked, started = total(where, "refused")["gpu-spot"], total(where, "started")
        process.kill()
        ended(process, began)
        must(not started, f"within a minute Ray asked {asked} times for what there is not, and never for the other")


CASES: dict[str, Callable[[Bench], None]] = {case.__name__: case for case in (types, priorities)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    wanted = parser.parse_args().cases or list(CASES)
    if os.geteuid() or shutil.which("unshare") is None:
        print("error: the nodes run in namespaces of their own, whose making needs root and unshare", file=sys.stderr)
        return 2
    if INSIDE not in os.environ:
        command = ["unshare", *SPACES, sys.executable, __file__, *wanted]
        return subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode
    subprocess.run(["bash", "-ec", NETWORK], check=True)
    with bench() as where:
        for name in ("HOME", "RAY_TMPDIR"):
            os.environ[name] = where.env[name] = str(where.folder)
        for name in wanted:
            print(f"{name}: {(CASES[name].__doc__ or '').strip()}", flush=True)
            try:
                CASES[name](where)
            except RuntimeError as error:
                print(f"error: {error}; the provider was asked: {noted(where)}", file=sys.stderr)
                return 1
    print("all of it holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
