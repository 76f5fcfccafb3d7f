"""infra/kubernetes, compose.yaml and the image: Kubernetes' and KubeRay's schemas know every field, and what they name exists.

Nothing here runs on a Kubernetes. KUBERAY_CRDS=FOLDER with KubeRay's own ray.io_rayclusters.yaml and ray.io_rayjobs.yaml holds the
Ray files against those, too.
"""

import configparser
import copy
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from compose_spec import PyCompose
from packaging.requirements import Requirement
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra/kubernetes"
OVERLAYS = ("base", "gpu", "train")
KUBERNETES = ("1.30", "1.37")  # the oldest and the newest that the schemas are checked for
COMPOSE = ROOT / "infra/compose.yaml"
_RAY = json.loads((ROOT / "tests/fixtures/kubernetes/kuberay.json").read_text())
_MADE = {"secrets": {"ddpm": {"auth_token"}}, "services": {"ddpm-head-svc": {8265}}}
"""What KubeRay makes of the RayCluster ddpm: its token, and its head's service."""

Object = dict[str, Any]


def read(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


# What kustomize makes of a folder, in as much of it as these files use.


def render(folder: Path) -> list[Object]:
    spec = read(folder / "kustomization.yaml")[0]
    known = {"apiVersion", "kind", "namespace", "resources", "images", "patches", "replacements"}
    assert set(spec) <= known
    objects: list[Object] = []
    for name in spec["resources"]:
        objects += render(folder / name) if (folder / name).is_dir() else read(folder / name)
    for patch in spec.get("patches", []):
        for step in read(folder / patch["path"])[0]:
            *where, end = step["path"].split("/")[1:]
            assert (step["op"], end) == ("add", "-")
            at(the(objects, patch["target"]), where).append(step["value"])
    for each in objects:
        if "namespace" in spec and each["kind"] != "Namespace":
            each["metadata"]["namespace"] = spec["namespace"]
        for container in containers(each):
            container["image"] = image(container["image"], spec.get("images", []))
    for each in spec.get("replacements", []):
        value = at(the(objects, each["source"]), each["source"]["fieldPath"].split("."))
        for target in each["targets"]:
            for path in target["fieldPaths"]:
                *where, end = path.split(".")
                at(the(objects, target["select"]), where)[end] = copy.deepcopy(value)
    return objects


def the(objects: list[Object], which: Object) -> Object:
    (found,) = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (which["kind"], which["name"])]
    return found


def at(place: Any, path: list[str]) -> Any:
    for step in path:
        place = place[int(step)] if isinstance(place, list) else place[step]
    return place


def image(name: str, images: list[Object]) -> str:
    for new in images:
        if name == new["name"]:
            digest = f"@{new['digest']}" if "digest" in new else ""
            return f"{new.get('newName', name)}:{new['newTag']}{digest}"
    return name


def walk(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(inner)


def pods(thing: Any) -> list[Object]:
    """Every pod's spec in it."""
    return [each for each in walk(thing) if isinstance(each, dict) and isinstance(each.get("containers"), list)]


def containers(thing: Any) -> list[Object]:
    return [each for pod in pods(thing) for each in [*pod["containers"], *pod.get("initContainers", [])]]


def labels(objects: list[Object]) -> list[Object]:
    """Those of each pod."""
    templates = [each for each in walk(objects) if isinstance(each, dict) and "containers" in (each.get("spec") or {})]
    return [each["metadata"].get("labels", {}) for each in templates]


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    """The overlay that has all of it."""
    return render(FOLDER / "train")


@cache
def validator(kind: str, api: str, version: str) -> Any:
    folder = files("kubernetes_validate") / f"kubernetes-json-schema/v{version}.0-local-strict"
    pods = json.loads((folder / "_definitions.json").read_text())
    if api == "ray.io/v1":
        schema = {"$ref": f"{_RAY['$id']}#/$defs/{kind}"}
    else:
        group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
        schema = json.loads((folder / f"{kind.lower()}-{group}.json").read_text())
    known = Registry().with_resources(
        [(each["$id"], Resource.from_contents(each, DRAFT202012)) for each in (pods, _RAY)]
    )
    return jsonschema.Draft202012Validator(schema, registry=known)


def check(each: Object, version: str = KUBERNETES[-1]) -> None:
    """Its schema knows each field.

    Raises:
        jsonschema.ValidationError: it does not.
    """
    validator(each["kind"], each["apiVersion"], version).validate(each)


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_schemas_know_every_field(overlay: str, version: str) -> None:
    rendered = render(FOLDER / overlay)
    assert len(rendered) == {"base": 14, "gpu": 14, "train": 15}[overlay]
    for each in rendered:
        check(each, version)
        assert each["metadata"].get("namespace") == (None if each["kind"] == "Namespace" else "ddpm")


def places(each: Object) -> list[Object]:
    """Where a field would be misspelt: the object, its spec, each pod, container and group in it, and what stands in those."""
    found = [each, each["metadata"], *[each["spec"] for _ in range("spec" in each)]]
    for pod in pods(each):
        found += [pod, pod["securityContext"]]
    for container in containers(each):
        found += [container, container["resources"], container["securityContext"]]
    groups = [inner for inner in walk(each) if isinstance(inner, dict) and "rayStartParams" in inner]
    options = [
        inner for inner in walk(each) if isinstance(inner, dict) and ({"mode", "idleTimeoutSeconds"} & set(inner))
    ]
    return [*found, *groups, *options]


def test_a_wrong_field_is_found_in_each_kind(objects: list[Object]) -> None:
    tried = 0
    for each in objects:
        for number in range(len(places(each))):
            wrong = copy.deepcopy(each)
            places(wrong)[number]["notAField"] = "1"
            with pytest.raises(jsonschema.ValidationError, match="notAField"):
                check(wrong)
            tried += 1
    assert tried > 100
    for path, value in (("maxReplicas", "4"), ("rayStartParams", {"num-cpus": 0}), ("template", "pod")):
        wrong = copy.deepcopy(the(objects, {"kind": "RayCluster", "name": "ddpm"}))
        wrong["spec"]["workerGroupSpecs"][0][path] = value
        with pytest.raises(jsonschema.ValidationError):
            check(wrong)


@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS names no folder with KubeRay's own schemas")
def test_kuberay_s_own_schemas_know_every_field(objects: list[Object]) -> None:
    def close(schema: Any) -> None:
        for inner in walk(schema):
            if isinstance(inner, dict) and isinstance(inner.get("properties"), dict) and inner.get("type") == "object":
                inner.setdefault("additionalProperties", False)

    for kind in ("RayCluster", "RayJob"):
        file = Path(os.environ["KUBERAY_CRDS"]) / f"ray.io_{kind.lower()}s.yaml"
        definition = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        (version,) = [each for each in definition["spec"]["versions"] if each["name"] == "v1"]
        schema = version["schema"]["openAPIV3Schema"]
        close(schema)
        for each in objects:
            if each["kind"] == kind:
                jsonschema.Draft202012Validator(schema).validate(each)
                each["spec"]["notAField"] = 1
                with pytest.raises(jsonschema.ValidationError):
                    jsonschema.Draft202012Validator(schema).validate(each)
                del each["spec"]["notAField"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_makes_the_same(overlay: str) -> None:
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl, which has kustomize")
    done = subprocess.run(["kubectl", "kustomize", FOLDER / overlay], capture_output=True, text=True, check=True)
    theirs = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(done.stdout)}
    assert theirs == {(each["kind"], each["metadata"]["name"]): each for each in render(FOLDER / overlay)}


# What is named is there.


def made_by_hand() -> dict[str, set[str]]:
    """Secrets and their keys, by the commands that docs/cluster.md prints."""
    text = (ROOT / "docs/cluster.md").read_text()
    found: dict[str, set[str]] = {}
    for name, rest in re.findall(r"create secret generic (\S+) (.*)$", text, flags=re.M):
        found[name] = set(re.findall(r"--from-literal=(\w+)=", rest))
        if "--from-env-file=s3.env" in rest:
            found[name] |= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    return found


def absent(objects: list[Object]) -> set[str]:
    """What is referred to and not there."""
    named = {
        kind: {e["metadata"]["name"]: e for e in objects if e["kind"] == kind} for kind in {e["kind"] for e in objects}
    }
    secrets = {**made_by_hand(), **_MADE["secrets"]}
    services = {name: {p["port"] for p in each["spec"]["ports"]} for name, each in named["Service"].items()}
    services |= _MADE["services"]
    roles = {label.get("role") for label in labels(objects)}
    lost = set()
    for pod in pods(objects):
        if pod["serviceAccountName"] not in named["ServiceAccount"]:
            lost.add(f"account {pod['serviceAccountName']}")
    for each in walk(objects):
        if not isinstance(each, dict):
            continue
        for kind, there in (("secretRef", secrets), ("configMapRef", named["ConfigMap"])):
            if kind in each and each[kind]["name"] not in there:
                lost.add(f"{kind} {each[kind]['name']}")
        if (key := each.get("secretKeyRef")) and key["key"] not in secrets.get(key["name"], set()):
            lost.add(f"secret {key['name']}, key {key['key']}")
        if "role" in each.get("matchLabels", each.get("selector", {}) or {}):
            role = each.get("matchLabels", each.get("selector"))["role"]
            lost |= {f"role {role}"} - {f"role {known}" for known in roles}
    values = [
        value for each in walk(objects) if isinstance(each, dict) for value in each.values() if isinstance(value, str)
    ]
    for value in values:
        for host, port in re.findall(r"^http://([\w-]+):(\d+)", value):
            if int(port) not in services.get(host, set()):
                lost.add(f"service {host}:{port}")
    for workload in named["StatefulSet"].values():
        if workload["spec"]["serviceName"] not in services:
            lost.add(f"service {workload['spec']['serviceName']}")
    for thing in objects:
        for pod in pods(thing):
            volumes = {v["name"] for v in pod.get("volumes", [])}
            volumes |= {c["metadata"]["name"] for c in thing["spec"].get("volumeClaimTemplates", [])}
            for container in pod["containers"]:
                lost |= {f"volume {m['name']}" for m in container.get("volumeMounts", []) if m["name"] not in volumes}
                ports = {p["name"] for p in container.get("ports", [])}
                for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                    port = container.get(probe, {}).get("httpGet", {}).get("port")
                    lost |= {f"port {port}"} if port and port not in ports else set()
    for service in named["Service"].values():
        ports = {p["name"] for c in containers(objects) for p in c.get("ports", [])}
        lost |= {f"port {p['targetPort']}" for p in service["spec"]["ports"] if p["targetPort"] not in ports}
    return lost


def test_what_is_named_is_there(objects: list[Object]) -> None:
    assert absent(objects) == set()
    settings = the(objects, {"kind": "ConfigMap", "name": "settings"})["data"]
    used = {
        name for value in walk(objects) if isinstance(value, str) for name in re.findall(r"\$\(?([A-Z_]+)\)?", value)
    }
    assert used == {"STORE"}
    assert used <= set(settings)
    assert set(made_by_hand()) == {"s3", "postgres", "mlflow", "mlflow-server"}


@pytest.mark.parametrize(
    ("kind", "name", "path", "value", "lost"),
    [
        ("CronJob", "tick", "spec.jobTemplate.spec.template.spec.serviceAccountName", "tick", "account tick"),
        ("Deployment", "mlflow", "spec.template.spec.containers.0.envFrom.1.secretRef.name", "s4", "secretRef s4"),
        (
            "RayCluster",
            "ddpm",
            "spec.headGroupSpec.template.spec.containers.0.envFrom.0.configMapRef.name",
            "a",
            "configMapRef a",
        ),
        (
            "CronJob",
            "tick",
            "spec.jobTemplate.spec.template.spec.containers.0.env.2.valueFrom.secretKeyRef.key",
            "t",
            "secret ddpm, key t",
        ),
        ("ConfigMap", "settings", "data.MLFLOW_TRACKING_URI", "http://mlflow:5001", "service mlflow:5001"),
        ("NetworkPolicy", "postgres", "spec.ingress.0.from.0.podSelector.matchLabels.role", "flow", "role flow"),
        ("Service", "mlflow", "spec.selector.role", "flow", "role flow"),
        ("Service", "mlflow", "spec.ports.0.targetPort", "web", "port web"),
        ("StatefulSet", "postgres", "spec.template.spec.containers.0.volumeMounts.0.name", "disk", "volume disk"),
        ("Deployment", "mlflow", "spec.template.spec.containers.0.livenessProbe.httpGet.port", "web", "port web"),
    ],
)
def test_what_is_not_there_is_noticed(kind: str, name: str, path: str, value: str, lost: str) -> None:
    wrong = render(FOLDER / "train")
    *where, end = path.split(".")
    at(the(wrong, {"kind": kind, "name": name}), where)[end] = value
    assert absent(wrong) == {lost}


def test_the_versions_are_the_project_s(objects: list[Object]) -> None:
    pinned = dict(line.split("==") for line in (ROOT / "infra/constraints.txt").read_text().splitlines())
    asked = [
        Requirement(each)
        for each in re.findall(r'^    "(ray\[.*)",$', (ROOT / "pyproject.toml").read_text(), flags=re.M)
    ]
    assert [str(each.specifier) for each in asked] == [f"=={pinned['ray']}"]
    assert {each["rayVersion"] for each in walk(objects) if isinstance(each, dict) and "rayVersion" in each} == {
        pinned["ray"]
    }
    ours = {each["image"] for each in containers(objects) if not each["image"].startswith("postgres:")}
    assert ours == {f"registry.example/ddpm:ray-{pinned['ray']}"}
    composed = {each["image"] for each in yaml.safe_load(COMPOSE.read_text())["services"].values() if "build" in each}
    assert composed == {f"ddpm:ray-{pinned['ray']}"}
    (database,) = {each["image"] for each in containers(objects)} - ours
    assert set(re.findall(r"postgres@(sha256:\w+)", COMPOSE.read_text())) == {database.partition("@")[2]}


def test_no_container_may_more_than_it_needs(objects: list[Object]) -> None:
    assert len(containers(objects)) == 10
    for pod in pods(objects):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["serviceAccountName"] == "ray-head" or pod["automountServiceAccountToken"] is False
        assert {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]} >= {"tmp"}
    confined = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    autoscalers = [
        each["autoscalerOptions"] for each in walk(objects) if isinstance(each, dict) and "autoscalerOptions" in each
    ]
    assert len(autoscalers) == 2
    for each in [*containers(objects), *autoscalers]:
        assert each["securityContext"] == confined
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(each["resources"][kind])
    for each in walk(objects):  # Ray counts with the limits
        if isinstance(each, dict) and "rayStartParams" in each:
            (resources,) = [container["resources"] for container in each["template"]["spec"]["containers"]]
            assert resources["requests"] == resources["limits"]


def test_workers_come_with_work_and_each_pod_of_ray_gives_notice(objects: list[Object]) -> None:
    for spec in [each for each in walk(objects) if isinstance(each, dict) and "workerGroupSpecs" in each]:
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["enableInTreeAutoscaling"] is True
        assert [group["groupName"] for group in spec["workerGroupSpecs"]] == ["cpu", "gpu"]
        assert {group["minReplicas"] for group in spec["workerGroupSpecs"]} == {0}
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            pod = group["template"]["spec"]
            (container,) = pod["containers"]
            python, script, *flags = container["lifecycle"]["preStop"]["exec"]["command"]
            assert (python, (ROOT / script.removeprefix("/opt/ddpm/")).exists()) == ("python", True)
            assert ("--commands" in flags) is (group is spec["headGroupSpec"])
            assert int(flags[flags.index("--seconds") + 1]) < pod["terminationGracePeriodSeconds"]
            (memory,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm"]
            assert memory["medium"] == "Memory"
            assert (
                int(group["rayStartParams"]["object-store-memory"]) < int(memory["sizeLimit"].removesuffix("Gi")) << 30
            )


def test_ray_is_reached_by_its_own_pods_alone_but_for_the_jobs_api(objects: list[Object]) -> None:
    rules = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "NetworkPolicy"}
    assert rules["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    own, others = rules["ray"]["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": {"role": "ray"}}}]}
    assert others["ports"] == [{"port": 8265}]
    assert all("ports" in rule for name in ("mlflow", "postgres") for rule in rules[name]["ingress"])
    assert all(label.get("role") for label in labels(objects))


def test_no_file_holds_a_secret(objects: list[Object]) -> None:
    assert not [each for each in objects if each["kind"] == "Secret"]
    secret = re.compile(r"(PASSWORD|SECRET|TOKEN|ACCESS_KEY)")
    given = [each for each in walk(objects) if isinstance(each, dict) and "name" in each and "value" in each]
    assert not [each for each in given if secret.search(each["name"])]
    settings = the(objects, {"kind": "ConfigMap", "name": "settings"})["data"]
    assert not [name for name in settings if secret.search(name)]
    for service in yaml.safe_load(COMPOSE.read_text())["services"].values():
        for name, value in service.get("environment", {}).items():
            assert value.startswith("${") or not secret.search(name) or name == "AWS_ACCESS_KEY_ID"
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


# compose.yaml


def composed(change: Callable[[Object], None] = lambda spec: None) -> Object:
    """The file; its own schema knows each field.

    Raises:
        ValueError: it does not.
    """
    spec: Object = yaml.safe_load(COMPOSE.read_text())
    change(spec)
    PyCompose.from_json(json.dumps(spec))
    return spec


def test_compose_takes_the_file_and_publishes_on_this_machine_alone() -> None:
    spec = composed()
    services = spec["services"]
    published = [port for each in services.values() for port in each.get("ports", [])]
    assert sorted(published) == ["127.0.0.1:5000:5000", "127.0.0.1:8265:8265", "127.0.0.1:9000:9000"]
    for name, each in services.items():
        assert each["cap_drop"] == ["ALL"], name
        assert each["read_only"] is True, name
        assert set(each.get("depends_on", {})) <= set(services)
        assert {volume.partition(":")[0] for volume in each.get("volumes", [])} <= set(spec["volumes"])
        for other, when in each.get("depends_on", {}).items():
            assert ("healthcheck" in services[other]) is (when["condition"] == "service_healthy"), other
    text = COMPOSE.read_text()
    (made,) = re.findall(r"for name in (.*?);", text)
    assert set(made.split()) == set(re.findall(r"\$\{(\w+):\?", text))
    assert set(re.findall(r"\$\{(\w+)", text)) == set(made.split())


def test_a_wrong_field_of_compose_is_found() -> None:
    for change in (
        lambda spec: spec["services"]["ray"].update(shm=1),
        lambda spec: spec["services"]["ray"]["healthcheck"].update(tests=["CMD"]),
        lambda spec: spec["services"]["ray"]["depends_on"]["mlflow"].update(condition="healthy"),
        lambda spec: spec.update(service={}),
    ):
        with pytest.raises(ValueError, match=r"extension key|unknown variant"):
            composed(change)


# The image


def test_the_image_is_of_the_tested_versions_and_of_what_is_sent() -> None:
    text = (ROOT / "infra/Dockerfile").read_text().replace("\\\n", " ")
    pinned = {line.split("==")[0].lower() for line in (ROOT / "infra/constraints.txt").read_text().splitlines()}
    assert re.search(r"^ARG BASE=python:[\d.]+-slim-bookworm@sha256:[0-9a-f]{64}$", text, flags=re.M)
    assert re.findall(r"^FROM (\S+)", text, flags=re.M) == ["${BASE}", "${BASE}"]
    assert re.findall(r"^USER (\S+)", text, flags=re.M) == ["10001:10001"]
    installs = re.findall(r"pip install ([^&\n]*)", text)
    assert len(installs) == 3
    for each in installs:
        words = [word for word in shlex.split(each) if not word.startswith("-")]
        assert "--no-deps" in each or "-c infra/constraints.txt" in each
        packages = {word.removesuffix("[binary]") for word in words} - {
            "infra/constraints.txt",
            "${TORCH}",
            "pyproject.toml",
            "pipelines",
            "server",
            ".",
        }
        assert {package.lower() for package in packages} <= pinned
    sent = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert sent[0] == "*"
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, flags=re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert any(
                fnmatch(source, pattern.removeprefix("!")) or source.startswith(f"{pattern[1:]}/")
                for pattern in sent[1:]
            )
    assert ".venv" in (ROOT / ".gitignore").read_text().splitlines()  # else each scheduled job would carry it to Ray
    assert "COPY .gitignore /opt/ddpm/" in text


# What the pods start


def load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, list[str]]:
    """serve.py, with all that it needs, and what it started."""
    serve, started = load("infra/mlflow/serve.py"), []
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"], **dict.fromkeys(serve._NEEDED, "given")})
    monkeypatch.setenv("POSTGRES_PASSWORD", "p%/@:w")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "execvp", lambda file, command: started.extend(command))
    return serve, started


def test_mlflow_s_server_gets_the_password_by_no_argument(serving: tuple[Any, list[str]], tmp_path: Path) -> None:
    serve, started = serving
    serve.main()
    assert started[:4] == ["mlflow", "server", "--app-name", "basic-auth"]
    assert not [each for each in started if "p%" in each]
    (path,) = tmp_path.iterdir()
    assert os.environ["MLFLOW_AUTH_CONFIG_PATH"] == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    config = configparser.ConfigParser()  # as MLflow reads it
    config.read(path)
    assert config["mlflow"]["database_uri"] == os.environ["MLFLOW_BACKEND_STORE_URI"]
    assert config["mlflow"]["database_uri"] == "postgresql://mlflow:p%25%2F%40%3Aw@given/mlflow"
    assert os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"] == "given"


def test_mlflow_s_server_without_its_settings_says_which(
    serving: tuple[Any, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve, started = serving
    monkeypatch.setenv("POSTGRES_PASSWORD", "")
    with pytest.raises(SystemExit, match="2"):
        serve.main()
    assert not started
    assert capsys.readouterr().err == "error: POSTGRES_PASSWORD not set; see the top of infra/mlflow/serve.py\n"


def test_a_head_that_goes_ends_the_commands_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    leave = load("infra/spot/leave.py")
    for name in ("pipelines/train.py", "other/train.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(
            "import signal, sys, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
            "print('up', flush=True)\n"
            "time.sleep(60)\n"
        )
    ours, other = (
        subprocess.Popen([sys.executable, tmp_path / name, "digits"], stdout=subprocess.PIPE)
        for name in ("pipelines/train.py", "other/train.py")
    )
    try:
        for process in (ours, other):
            assert process.stdout is not None
            process.stdout.readline()
        everybody = leave._commands
        monkeypatch.setattr(  # whatever else this machine is at
            leave, "_commands", lambda: (each for each in everybody() if each[0] in (ours.pid, other.pid))
        )
        monkeypatch.setattr(sys, "argv", ["leave.py", "--seconds", "30", "--commands"])
        assert leave.main() == 0
        assert ours.wait(5) == 143
        assert other.poll() is None
    finally:
        for process in (ours, other):
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
