"""What the stack's nodes work with, each a real server on this host: Ceph's object gateway as S3, PostgreSQL, MLflow.

Each keeps its data in a folder of its own. `make` is for once, `start` for each time; both end when it answers. Its processes carry
`DDPM_STACK=<folder>/<name>` in their environment: by that they are found, whoever started them.
"""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import boto3
from machines import sh

MARK = "DDPM_STACK"
POSTGRES = "/usr/lib/postgresql/15/bin"
CEPH = """
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = v2:127.0.0.1:{port}
public_addr = 127.0.0.1
public_network = 127.0.0.0/8
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = {folder}/$name.keyring
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
mon_data_avail_warn = 3
mon_data_avail_crit = 2
run_dir = {folder}
log_file = {folder}/$name.log
admin_socket = {folder}/$name.asok
crash_dir = {folder}/crash
setuser_match_path =
[mon]
mon_data = {folder}/$name
mon_cluster_log_file = {folder}/cluster.log
[osd]
osd_data = {folder}/$name
osd_objectstore = bluestore
bluestore_block_size = 8589934592
osd_memory_target = 1073741824
[client.rgw]
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint={endpoint} tcp_nodelay=1
rgw_enable_usage_log = false
"""


def wait_until(holds: Callable[[], bool], what: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise RuntimeError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.5)


def answers(url: str, headers: Mapping[str, str] | None = None) -> bool:
    """Whether a page comes, with any status below 400."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers or {})), timeout=5):
            return True
    except OSError:
        return False


def write_secret(path: Path, text: str) -> None:
    """A file for its user alone, whole or not there."""
    part = path.with_name(path.name + ".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    part.rename(path)


def marked(folder: Path) -> list[int]:
    """The processes that were started with `folder`, or with one below it, as their mark."""
    found, mark = [], f"{MARK}={folder}".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            variables = environ.read_bytes().split(b"\0")
            if any(each == mark or each.startswith(mark + b"/") for each in variables):
                found.append(int(environ.parent.name))
    return found


@dataclass(frozen=True)
class Service(ABC):
    name: str
    folder: Path

    @abstractmethod
    def make(self) -> None: ...

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def answers(self) -> bool: ...

    def kill(self) -> None:
        """As a machine that loses its power: kill -9 of all of it."""
        while pids := marked(self.folder):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            time.sleep(0.1)

    def daemon(self, *command: str | Path, env: Mapping[str, str] | None = None) -> None:
        """Start what outlives this process; what it says goes into the folder's `out.log`."""
        mark = {MARK: str(self.folder)}
        with open(self.folder / "out.log", "ab") as log:
            subprocess.Popen(
                [str(part) for part in command],
                env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **(env or {}), **mark},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, seconds: float = 90) -> None:
        try:
            wait_until(self.answers, self.name, seconds)
        except RuntimeError as error:
            tail = (self.folder / "out.log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{error}; {self.folder}/out.log ends with:\n{tail}") from None


@dataclass(frozen=True)
class S3(Service):
    """Ceph with one monitor and one disk, which is a sparse file of 8 GiB; they listen on loopback, the gateway at `endpoint`."""

    endpoint: str  # HOST:PORT
    monitor_port: int
    bucket: str  # of a user of the same name, who alone may enter

    @property
    def url(self) -> str:
        return f"http://{self.endpoint}"

    def keys(self) -> dict[str, str]:
        """The environment of who works with the bucket."""
        found: dict[str, str] = json.loads((self.folder / "keys").read_text())
        return found

    def ceph(self, program: str, *args: str | Path) -> str:
        return sh(program, "-c", self.folder / "ceph.conf", *args)

    def make(self) -> None:
        f = self.folder
        for each in ("crash", "mon.a", "osd.0", "rgw"):
            (f / each).mkdir(parents=True, exist_ok=True)
        fsid = str(uuid4())
        conf = CEPH.format(fsid=fsid, port=self.monitor_port, folder=f, endpoint=self.endpoint)
        (f / "ceph.conf").write_text(conf)
        every = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"]
        sh("ceph-authtool", "--create-keyring", f / "mon.keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        sh("ceph-authtool", "--create-keyring", f / "client.admin.keyring", "--gen-key", "-n", "client.admin", *every)
        sh("ceph-authtool", f / "mon.keyring", "--import-keyring", f / "client.admin.keyring")
        address = f"[v2:127.0.0.1:{self.monitor_port}]"
        sh("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address, f / "monmap")
        self.ceph("ceph-mon", "--mkfs", "-i", "a", "--monmap", f / "monmap", "--keyring", f / "mon.keyring")
        self.daemon("ceph-mon", "-c", f / "ceph.conf", "-i", "a", "-f")
        allowed = {
            "osd.0": ["mon", "allow profile osd", "osd", "allow *"],
            "client.rgw": ["mon", "allow rw", "osd", "allow rwx"],
        }
        for who, caps in allowed.items():
            keyring = self.ceph("ceph", "--connect-timeout", "30", "auth", "get-or-create", who, *caps)
            write_secret(f / f"{who}.keyring", keyring)
        uuid = str(uuid4())
        self.ceph("ceph", "osd", "new", uuid)
        self.ceph("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", uuid)
        self.ceph("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=localhost")
        self.daemon("ceph-osd", "-c", f / "ceph.conf", "-i", "0", "-f")
        wait_until(lambda: '"num_up_osds":1' in self.ceph("ceph", "osd", "stat", "-f", "json"), "ceph's disk", 60)
        user = [f"--uid={self.bucket}", f"--display-name={self.bucket}"]
        key = json.loads(self.ceph("radosgw-admin", "user", "create", *user))["keys"][0]
        env = {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": key["access_key"],
            "AWS_SECRET_ACCESS_KEY": key["secret_key"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        write_secret(f / "keys", json.dumps(env))
        self.daemon("radosgw", "-c", f / "ceph.conf", "-n", "client.rgw", "-f")
        self.wait()
        self.client().create_bucket(Bucket=self.bucket)

    def start(self) -> None:
        for program, who in (("ceph-mon", ("-i", "a")), ("ceph-osd", ("-i", "0")), ("radosgw", ("-n", "client.rgw"))):
            self.daemon(program, "-c", self.folder / "ceph.conf", *who, "-f")
        self.wait()

    def answers(self) -> bool:
        return answers(self.url)

    def client(self):  # type: ignore[no-untyped-def]
        """boto3's, with the bucket's keys."""
        env = self.keys()
        session = boto3.Session(
            env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], region_name=env["AWS_DEFAULT_REGION"]
        )
        return session.client("s3", endpoint_url=self.url)


@dataclass(frozen=True)
class PostgreSQL(Service):
    """It listens on loopback alone, and asks for the password there, too."""

    port: int
    database: str  # and its user

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def password(self) -> str:
        return (self.folder / "password").read_text()

    def program(self, name: str, *args: str) -> list[str]:
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", f"{POSTGRES}/{name}", *args]

    def make(self) -> None:
        write_secret(self.folder / "password", secrets.token_hex(24))
        sh("chown", "-R", "postgres:postgres", self.folder)
        who = [f"--username={self.database}", f"--pwfile={self.folder}/password", "--auth=scram-sha-256"]
        sh(*self.program("initdb", f"--pgdata={self.folder}/data", *who, "--encoding=UTF8", "--locale=C.UTF-8"))
        self.start()
        env = {"PATH": os.environ["PATH"], "PGPASSWORD": self.password}
        where = ["--host=127.0.0.1", f"--port={self.port}", f"--username={self.database}"]
        sh(*self.program("createdb", *where, self.database), env=env)

    def start(self) -> None:
        options = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={self.port}", "-c", "unix_socket_directories="]
        self.daemon(*self.program("postgres", "-D", f"{self.folder}/data", *options))
        self.wait()

    def answers(self) -> bool:
        ready = [f"{POSTGRES}/pg_isready", "--quiet", "--host=127.0.0.1", f"--port={self.port}"]
        return subprocess.run(ready, check=False).returncode == 0


@dataclass(frozen=True)
class MLflow(Service):
    """infra/mlflow/serve.py: runs and users in PostgreSQL, artifacts in S3; who has no password is told 401."""

    host: str
    postgres: PostgreSQL
    s3: S3

    @property
    def url(self) -> str:
        return f"http://{self.host}:5000"

    def keys(self) -> dict[str, str]:
        """The environment of who tracks there."""
        found: dict[str, str] = json.loads((self.folder / "keys").read_text())
        return found

    def make(self) -> None:
        write_secret(self.folder / "flask", secrets.token_hex(32))
        env = {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_USERNAME": "ddpm",
            "MLFLOW_TRACKING_PASSWORD": secrets.token_hex(24),
        }
        write_secret(self.folder / "keys", json.dumps(env))
        self.start()

    def start(self) -> None:
        env = {
            **self.s3.keys(),  # its pages show what the pipeline has put into the store
            **{name: value for name, value in self.keys().items() if name != "MLFLOW_TRACKING_URI"},
            "MLFLOW_ADDRESS": self.host,
            "MLFLOW_ARTIFACTS": f"s3://{self.s3.bucket}/mlflow",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": (self.folder / "flask").read_text(),
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"{self.host}:5000",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # three more processes, for what we do not use
            "POSTGRES_HOST": self.postgres.address,
            "POSTGRES_PASSWORD": self.postgres.password,
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
        }
        for old in self.folder.glob("mlflow-auth-*.ini"):
            old.unlink()
        self.daemon(sys.executable, Path(__file__).parents[1] / "mlflow/serve.py", env=env)
        self.wait(180)

    def answers(self) -> bool:
        return answers(f"{self.url}/health")
