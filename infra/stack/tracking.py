"""MLflow's server for the stack, and the PostgreSQL behind it."""

import json
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ceph import S3
from machines import sh
from services import Service, answers, write_secret

_INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
POSTGRES = _INSTALLED[-1] if _INSTALLED else Path("/usr/lib/postgresql/bin")
"""The newest that Debian has installed."""


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
