"""MLflow's server for a team: runs in PostgreSQL, artifacts on S3, a password.

    python infra/mlflow/serve.py

It reads POSTGRES_HOST, as HOST or HOST:PORT, and POSTGRES_PASSWORD (of the user and the database `mlflow`), MLFLOW_ARTIFACTS
(s3://bucket/prefix), MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (which it makes the administrator's, the first time)
and MLFLOW_FLASK_SERVER_SECRET_KEY; MLFLOW_ADDRESS, if it is to listen at that one alone; MLFLOW_CERTIFICATE and MLFLOW_KEY, two
files, if it is to speak https. MLflow wants the database's password in a file, which is written here, for this user alone, and
nothing of it among a process's arguments.
"""

import os
import sys
import tempfile
from urllib.parse import quote

_NEEDED = (
    "POSTGRES_HOST",
    "POSTGRES_PASSWORD",
    "MLFLOW_ARTIFACTS",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
)


def auth_file(database: str) -> str:
    """The path of what MLflow reads about users. The administrator comes by the environment."""
    descriptor, path = tempfile.mkstemp(prefix="mlflow-auth-", suffix=".ini")
    with open(descriptor, "w") as file:
        file.write(
            "[mlflow]\n"
            "default_permission = READ\n"
            f"database_uri = {database.replace('%', '%%')}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
    return path


def main() -> None:
    """Become the server.

    Raises:
        SystemExit: with 2, if a setting is missing.
    """
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        print(f"error: {', '.join(missing)} not set; see the top of infra/mlflow/serve.py", file=sys.stderr)
        sys.exit(2)
    given = os.environ
    database = f"postgresql://mlflow:{quote(given['POSTGRES_PASSWORD'], safe='')}@{given['POSTGRES_HOST']}/mlflow"
    command = ["mlflow", "server", "--app-name", "basic-auth", "--port", "5000"]
    command += ["--host", given.get("MLFLOW_ADDRESS", "0.0.0.0")]
    command += ["--serve-artifacts", "--artifacts-destination", given["MLFLOW_ARTIFACTS"], "--workers", "2"]
    if given.get("MLFLOW_CERTIFICATE"):
        command += [
            "--uvicorn-opts",
            f"--ssl-certfile {given['MLFLOW_CERTIFICATE']} --ssl-keyfile {given['MLFLOW_KEY']}",
        ]
    os.environ.update(
        MLFLOW_AUTH_CONFIG_PATH=auth_file(database),
        MLFLOW_BACKEND_STORE_URI=database,
        MLFLOW_AUTH_ADMIN_USERNAME=given["MLFLOW_TRACKING_USERNAME"],
        MLFLOW_AUTH_ADMIN_PASSWORD=given["MLFLOW_TRACKING_PASSWORD"],
        PATH=os.pathsep.join([os.path.dirname(sys.executable), given.get("PATH", os.defpath)]),
    )
    os.execvp("mlflow", command)


if __name__ == "__main__":
    main()
