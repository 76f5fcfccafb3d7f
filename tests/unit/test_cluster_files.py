"""The files of `ray up`: Ray's own validator takes them, AWS's model knows the machines' fields, and what they name exists."""

import copy
import json
import re
import runpy
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import click
import jsonschema
import pytest
import ray.autoscaler
import yaml
from botocore.exceptions import ClientError
from botocore.validate import ParamValidator
from moto import mock_aws
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_USER_NODE_TYPE

from pipelines.cluster.spot_first import SpotFirst

ROOT = Path(__file__).parents[2]
LOCAL, AWS = ROOT / "ray_cluster.yaml", ROOT / "infra/aws/cluster.yaml"
FILES = [LOCAL, AWS]
_SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
_TOKEN = "0123456789abcdef"


def read(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    return config


def check(config: dict[str, Any]) -> dict[str, Any]:
    """The file as Ray completes it. Ray takes any field of a provider and of a machine, so these are checked here."""
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    unknown = set(config["provider"]) - set(_SCHEMA["properties"]["provider"]["properties"])
    assert not unknown, f"fields of the provider that Ray does not read: {unknown}"
    asked = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, node in config.get("available_node_types", {}).items():
        report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node["node_config"]}, asked)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
    return prepared


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name + "/" + path.name)
def test_ray_takes_the_file(path: Path) -> None:
    prepared = check(read(path))
    assert prepared["cluster_name"] == "ddpm"
    commands = [*prepared["setup_commands"], *prepared["head_setup_commands"], *prepared["worker_setup_commands"]]
    assert not [each for each in commands if "pip install" in each], "Ray's default commands install another Ray"


@pytest.mark.parametrize(
    ("path", "where", "field"),
    [
        (LOCAL, (), "head_setup_command"),
        (LOCAL, (), "available_node_types"),
        (LOCAL, ("provider",), "worker_ip"),
        (LOCAL, ("auth",), "ssh_key"),
        (AWS, (), "idle_timeout_minute"),
        (AWS, ("provider",), "zone"),
        (AWS, ("available_node_types", "gpu"), "prio"),
        (AWS, ("available_node_types", "gpu", "node_config"), "InstanceTyp"),
        (AWS, ("available_node_types", "head", "node_config", "MetadataOptions"), "HttpToken"),
    ],
)
def test_a_wrong_field_is_found(path: Path, where: tuple[str, ...], field: str) -> None:
    config = read(path)
    place = config
    for name in where:
        place = place[name]
    place[field] = {"nothing": 1}
    with pytest.raises((jsonschema.ValidationError, AssertionError, click.ClickException)):
        check(config)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name + "/" + path.name)
def test_what_a_file_names_is_in_the_project(path: Path) -> None:
    config = read(path)
    mounted = {target: source for target, source in config["file_mounts"].items() if not source.startswith("~")}
    assert mounted
    assert all((ROOT / source).exists() for source in mounted.values())
    ignored = [source for source in mounted.values() if source in {".", ".git", ".venv"}]
    assert not ignored, f"Ray hashes and copies all of {ignored}"
    commands = " ".join(config["head_setup_commands"] + config["worker_setup_commands"])
    named = re.findall(r"~/ddpm/(infra/[\w/.-]+)", commands)
    assert named
    assert all((ROOT / name).exists() for name in named)


def test_both_files_open_the_same_ports_and_ask_for_the_token() -> None:
    for kind in ("head_start_ray_commands", "worker_start_ray_commands"):
        ports = [re.findall(r"--[\w-]+-?port=\d+|--dashboard-host=\S+", " ".join(read(path)[kind])) for path in FILES]
        assert ports[0] == ports[1]
        assert ports[0]
        assert all("RAY_AUTH_MODE=token" in " ".join(read(path)[kind]) for path in FILES)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, use_s3: Any) -> Any:
    """An AWS of this process; the home folder is the test's own."""
    use_s3("http://127.0.0.1:9")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("HOME", str(tmp_path))
    with mock_aws():
        yield


def make_role(name: str, *policies: str) -> None:
    """As docs/cluster.md makes it."""
    iam, folder = boto3.client("iam"), ROOT / "infra/aws"
    iam.create_role(RoleName=name, AssumeRolePolicyDocument=(folder / "trust.json").read_text())
    for policy in policies:
        document = (folder / f"{policy}.json").read_text()
        iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=document)
    iam.create_instance_profile(InstanceProfileName=name)
    iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)


@pytest.fixture
def ready(aws: Any) -> tuple[SpotFirst, dict[str, Any]]:
    """The file's provider as `ray up` starts it, and its machines by node type."""
    config = SpotFirst.bootstrap_config(check(read(AWS)))
    make_role("ddpm-head", "head", "node")
    make_role("ddpm-node", "node")
    image = boto3.client("ec2", region_name="us-east-1").describe_images()["Images"][0]["ImageId"]
    machines = {
        kind: {**node["node_config"], "ImageId": image} for kind, node in config["available_node_types"].items()
    }
    return SpotFirst(config["provider"], config["cluster_name"]), machines


def start(provider: SpotFirst, machines: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Type, market and role of each machine, as AWS says."""
    for kind, machine in machines.items():
        tags = {TAG_RAY_NODE_KIND: NODE_KIND_WORKER, TAG_RAY_NODE_NAME: kind, TAG_RAY_USER_NODE_TYPE: kind}
        provider.create_node(machine, tags, 1)
    found = boto3.client("ec2", region_name="us-east-1").describe_instances()["Reservations"]
    rows = {
        tag["Value"]: row for each in found for row in each["Instances"] for tag in row["Tags"] if tag["Key"] == "Name"
    }
    return {
        name: (
            row["InstanceType"],
            row.get("InstanceLifecycle", "on demand"),
            row["IamInstanceProfile"]["Arn"].rsplit("/", 1)[1],
        )
        for name, row in rows.items()
    }


def test_aws_starts_each_kind_of_node_with_its_role_and_in_its_market(ready: tuple[SpotFirst, dict[str, Any]]) -> None:
    provider, machines = ready
    head, gpu = ("m7i.large", "on demand", "ddpm-head"), ("g5.xlarge", "spot", "ddpm-node")
    assert start(provider, machines) == {"head": head, "gpu": gpu}


@pytest.mark.parametrize(("refusal", "market"), [("InsufficientInstanceCapacity", "on demand"), ("AuthFailure", None)])
def test_where_aws_has_no_spot_machine_one_on_demand_is_taken(
    ready: tuple[SpotFirst, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, refusal: str, market: str | None
) -> None:
    provider, machines = ready
    create = provider.ec2_fail_fast.create_instances

    def create_without_spot(**asked: Any) -> Any:
        if "InstanceMarketOptions" in asked:
            raise ClientError({"Error": {"Code": refusal, "Message": "none"}}, "RunInstances")
        return create(**asked)

    monkeypatch.setattr(provider.ec2_fail_fast, "create_instances", create_without_spot)
    if market is None:
        with pytest.raises(NodeLaunchException, match=refusal):
            start(provider, {"gpu": machines["gpu"]})
    else:
        assert start(provider, {"gpu": machines["gpu"]}) == {"gpu": ("g5.xlarge", market, "ddpm-node")}


def test_the_head_may_end_no_machine_but_this_cluster_s() -> None:
    policy = {each["Sid"]: each for each in json.loads((ROOT / "infra/aws/head.json").read_text())["Statement"]}
    only = policy["EndThoseOfThisClusterAlone"]["Condition"]["StringEquals"]
    assert only == {"ec2:ResourceTag/ray-cluster-name": read(AWS)["cluster_name"]}


def fetch(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["fetch_token.py", "--region", "us-east-1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "infra/aws/fetch_token.py"), run_name="__main__")
    return int(ended.value.code or 0)


def test_the_token_is_fetched_for_its_user_alone(aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".ray/auth_token"
    path.parent.mkdir()
    path.write_text("an older one, which others may read")
    boto3.client("ssm", region_name="us-east-1").put_parameter(
        Name="/ddpm/ray-auth-token", Value=f"{_TOKEN}\n", Type="SecureString"
    )
    assert fetch(monkeypatch) == 0
    assert path.read_text() == _TOKEN
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_a_token_there_one_line_says_what_is_missing(
    aws: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(monkeypatch) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: parameter /ddpm/ray-auth-token of us-east-1 cannot be read: ")
    assert line.endswith("expected a SecureString there, and ssm:GetParameter in this machine's role")


def nodes(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "infra/nodes.py"), *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_node_of_other_versions_says_in_one_line_what_differs(tmp_path: Path) -> None:
    ours = nodes("versions").stdout
    noted = tmp_path / "head-versions.txt"
    noted.write_text(ours)
    assert nodes("same", str(noted)).returncode == 0
    noted.write_text(re.sub(r"Python \S+,", "Python 3.99.1,", ours))
    other = nodes("same", str(noted))
    assert other.returncode == 1
    (line,) = other.stderr.splitlines()
    assert re.match(
        r"error: \S+ has Python 3\.\d+\.\d+, the head Python 3\.99\.1; expected the same on every node", line
    )


def test_a_node_that_is_missing_is_named_with_what_its_set_up_said() -> None:
    last_error = runpy.run_path(str(ROOT / "infra/nodes.py"))["last_error"]
    log = "error: b 192.0.2.12: an older one\nerror: b 192.0.2.12: no python3\r\nerror: c 192.0.2.13: another\n"
    assert last_error("192.0.2.12", log) == "b 192.0.2.12: no python3"
    assert last_error("192.0.2.1", log) == "not there yet"


def test_a_machine_without_python_says_so_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "infra", tmp_path / "infra", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("cat", "dirname", "hostname", "rm", "sed", "sha256sum"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    env = {"HOME": str(tmp_path), "PATH": str(tools), "SSH_CONNECTION": "192.0.2.1 50000 192.0.2.12 22"}
    command = ["/bin/sh", str(tmp_path / "infra/setup_node.sh"), "worker"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r"error: \S+ 192\.0\.2\.12: no python3 and no uv on the PATH; install either", line)
