"""`ray up ray_cluster.yaml` on three machines that are reached by ssh, a job, a machine that dies, and `ray down`.

    .venv/bin/python tests/distributed/ssh_cluster.py [CASE ...]

Each machine is a set of Linux namespaces with its own network address, processes, host name, home, /tmp and sshd; /etc/hosts is
Debian's. The nodes' file is ray_cluster.yaml but for addresses, user and key. Cases, all of them unless some are named:

    user       as an ordinary user without sudo
    root       as root
    mixed      one machine's python3 is another one: it does not join, and one line says why

Needs root; openssh-server, rsync, iptables and iproute2; and a network, or a warm cache in /var/tmp, for the packages. Prints each
phase with its seconds; ends with 1 where something does not hold.
"""

import argparse
import contextlib
import logging
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from moto.server import ThreadedMotoServer

from ddpm_core.artifacts.checkpoint_store import CheckpointStore

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "infra/stack"))

from machines import Machine, Network, sh  # noqa: E402

NETWORK = Network("ddpm-ssh", "10.88.0")
CACHE = Path("/var/tmp/ddpm-ssh-cluster-cache")
PORT, UID = 8299, 4000
TOOLS = ("sshd", "ssh-keygen", "rsync", "ip", "iptables", "unshare")
OF_TRAINING = [
    "--train.num-workers",
    "3",
    "--train.threads",
    "2",
    "--train.min-workers",
    "1",
    "--unet.base-channels",
    "16",
]
# The machine's own settings must not be seen; sshd is its process 1's child, and what it leaves is collected by the shell.
SSHD = """
mkdir /run/sshd && cp "$ETC/sshd_config" "$ETC/host_key" /run/
for file in passwd group shadow hosts hostname; do mount --bind "$ETC/$file" "/etc/$file"; done
unset ETC
/usr/sbin/sshd -D -e -f /run/sshd_config &
wait
"""
OF_THE_MACHINE = r"unshare|bash -c \nset -e|sshd:|/usr/sbin/sshd"


@dataclass
class Laptop:
    """Where the commands of docs/cluster.md are typed: a home, a checkout, a file for `ray up`."""

    home: Path
    checkout: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.home / "ray_cluster.yaml"

    def run(self, *command: str, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.env, cwd=self.checkout, capture_output=True, text=True, check=False, timeout=timeout_s
        )

    def ray(self, *args: str, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
        return self.run(str(ROOT / ".venv/bin/ray"), *args, timeout_s=timeout_s)

    def job(self, *args: str, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
        verb, *others = args
        return self.ray("job", verb, "--address", f"http://127.0.0.1:{PORT}", *others, timeout_s=timeout_s)


@contextlib.contextmanager
def phase(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{time.monotonic() - began:8.1f} s  {what}", flush=True)


def must(holds: bool, what: str, done: subprocess.CompletedProcess[str] | None = None) -> None:
    """Say that it holds, or end."""
    if not holds:
        raise RuntimeError(f"{what}: no" + (f"\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}" if done else ""))
    print(f"            {what}", flush=True)


def wait_until(holds: Callable[[], bool], what: str, seconds: float) -> float:
    """The seconds that it took."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > seconds:
            raise RuntimeError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.5)
    return time.monotonic() - began


@contextlib.contextmanager
def bridged() -> Iterator[None]:
    """A bridge that the machines hang on, and a way out through this machine, for packages."""
    forward = Path("/proc/sys/net/ipv4/ip_forward")
    before = forward.read_text()
    rule = ["POSTROUTING", "-s", f"{NETWORK.prefix}.0/24", "!", "-o", NETWORK.bridge, "-j", "MASQUERADE"]
    NETWORK.up()  # fails where another of these scripts runs
    try:
        sh("iptables", "-t", "nat", "-A", *rule)
        forward.write_text("1")
        yield
    finally:
        forward.write_text(before)
        sh("iptables", "-t", "nat", "-D", *rule, check=False)
        NETWORK.down()


@contextlib.contextmanager
def store() -> Iterator[dict[str, str]]:
    """An S3 server for all machines, and the environment with its address and keys."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address=NETWORK.gateway, port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    env = {
        "AWS_ENDPOINT_URL_S3": f"http://{NETWORK.gateway}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ.update(env)  # of this process's own look into the store
    import boto3

    boto3.client("s3").create_bucket(Bucket="ssh-cluster")
    try:
        yield env
    finally:
        server.stop()


def furnish(machine: Machine, user: str, key: str, env: dict[str, str], first: str) -> None:
    """Its folder: what a fresh Debian has of accounts and hosts, the key, and the environment that a login sees."""
    name, etc = machine.name, machine.folder / "etc"
    home = machine.folder / ("root" if user == "root" else f"home/{user}")
    for each in (etc, home / ".ssh"):
        each.mkdir(parents=True, exist_ok=True)
    line = f"{user}:x:{UID}:{UID}::/home/{user}:/bin/bash\n" if user != "root" else ""
    (etc / "passwd").write_text(Path("/etc/passwd").read_text() + line)
    (etc / "group").write_text(Path("/etc/group").read_text() + (f"{user}:x:{UID}:\n" if line else ""))
    (etc / "shadow").write_text("root:*:19000:0:99999:7:::\n" + (f"{user}:*:19000:0:99999:7:::\n" if line else ""))
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
    (etc / "hostname").write_text(f"{name}\n")
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", etc / "host_key")
    (etc / "sshd_config").write_text(
        "HostKey /run/host_key\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        "SetEnv " + " ".join(f"{each}={value}" for each, value in env.items()) + "\n"
    )
    (home / ".ssh/authorized_keys").write_text(key)
    for file in (".bashrc", ".profile"):
        (home / file).write_text(first + (Path("/etc/skel") / file).read_text())
    cache = CACHE / user
    cache.mkdir(parents=True, exist_ok=True)
    if user != "root":
        sh("chown", "-R", f"{UID}:{UID}", home, cache)


def switch_on(machine: Machine) -> None:
    """With this script's Python where it lies, which may be a home's folder: `mixed` wants it."""
    env = {"PATH": os.environ["PATH"], "ETC": str(machine.folder / "etc")}
    machine.start(SSHD, env, machine.folder / "sshd.log", visible=[Path(sys.base_prefix)])


def make_laptop(folder: Path, user: str) -> Laptop:
    laptop = Laptop(folder, folder / "checkout")
    (folder / ".ssh").mkdir(parents=True)
    (folder / "tmp").mkdir()
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / ".ssh/id_ed25519")
    for name in sh("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (laptop.checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, laptop.checkout / name)
    laptop.env = {
        "HOME": str(folder),
        "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
        "TMPDIR": str(folder / "tmp"),
        "RAY_TMPDIR": str(folder / "tmp"),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "LANG": "C.UTF-8",
    }
    done = laptop.run("bash", "-c", "(umask 077; ray get-auth-token --generate > /dev/null)")
    must((folder / ".ray/auth_token").stat().st_mode & 0o077 == 0, "a token, for its user alone", done)
    config = yaml.safe_load((laptop.checkout / "ray_cluster.yaml").read_text())
    head, *workers = (f"{NETWORK.prefix}.{number}" for number in (11, 12, 13))
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    # ssh takes ~ for the home of the account that runs it, whatever HOME says.
    config["auth"] = {"ssh_user": user, "ssh_private_key": str(folder / ".ssh/id_ed25519")}
    laptop.file.write_text(yaml.safe_dump(config))
    return laptop


@contextlib.contextmanager
def machines(user: str, of_one: str = "") -> Iterator[tuple[Laptop, list[Machine]]]:
    """Three, and a laptop; the last one's shells begin with `of_one`."""
    folder = Path(tempfile.mkdtemp(prefix="ssh-cluster-", dir="/var/tmp"))
    folder.chmod(0o755)
    found: list[Machine] = []
    with contextlib.ExitStack() as stack:
        stack.callback(sh, "rm", "-rf", folder)
        stack.enter_context(bridged())
        env = stack.enter_context(store())
        # Where this machine's packages come from is where the others' do.
        registry = {name: os.environ[name] for name in os.environ if name.startswith(("PIP_", "UV_", "SSL_CERT_"))}
        env = {**env, **registry, "UV_CACHE_DIR": str(CACHE / user), "UV_LINK_MODE": "symlink"}
        laptop = make_laptop(folder / "laptop", user)
        key = (folder / "laptop/.ssh/id_ed25519.pub").read_text()
        for number, name in enumerate("abc"):
            found.append(Machine(name, 11 + number, NETWORK, folder / name))
            furnish(found[-1], user, key, env, of_one if name == "c" else "")
        stack.callback(lambda: [machine.die() for machine in found])
        for machine in found:
            switch_on(machine)
        try:
            yield laptop, found
        except (RuntimeError, subprocess.TimeoutExpired):
            keep_logs(found, folder.with_suffix(".logs"))
            raise


def keep_logs(found: list[Machine], target: Path) -> None:
    """Ray's, of a run that did not hold."""
    for machine in found:
        for session in (machine.folder / "tmp/ray").glob("session_2*"):
            shutil.copytree(session / "logs", target / machine.name / session.name, ignore_dangling_symlinks=True)
    print(f"Ray's logs lie in {target}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def dashboard(laptop: Laptop) -> Iterator[None]:
    """As docs/cluster.md has it."""
    command = [ROOT / ".venv/bin/ray", "dashboard", "--port", str(PORT), str(laptop.file)]
    with open(laptop.home / "dashboard.log", "wb") as log:
        tunnel = subprocess.Popen(
            command, env=laptop.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        with phase("ray dashboard: the Jobs API answers"):
            wait_until(lambda: laptop.job("list").returncode == 0, "the Jobs API", 60)
        yield
    finally:
        os.killpg(tunnel.pid, signal.SIGTERM)  # as Ctrl-C, its ssh with it
        tunnel.wait()


def nodes(laptop: Laptop, seconds: float = 600) -> subprocess.CompletedProcess[str]:
    """What docs/cluster.md has one ask after `ray up`."""
    return laptop.ray("exec", str(laptop.file), f"python ~/ddpm/infra/nodes.py --timeout {seconds:.0f}")


def rows(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.strip() for line in done.stdout.splitlines() if re.match(rf"{NETWORK.prefix}\.1\d  ", line)]


def submit(laptop: Laptop, name: str, *args: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
    command = ["python", "pipelines/train.py", "digits", "--store", "s3://ssh-cluster/store", "--name", name, *args]
    flags = ["--submission-id", name, *([] if wait else ["--no-wait"])]
    return laptop.job("submit", *flags, "--working-dir", ".", "--", *command)


def up(laptop: Laptop) -> None:
    with phase("ray up: the head, from nothing"):
        done = laptop.ray("up", "-y", str(laptop.file))
        must(done.returncode == 0, "ray up ends with 0", done)


def life(user: str) -> None:
    """Up, a job, a machine that dies and comes back, down."""
    with machines(user) as (laptop, found):
        up(laptop)
        with phase("both workers are set up and have joined"):
            done = nodes(laptop)
            must(done.returncode == 0 and len(rows(done)) == 3, "three nodes", done)
        for row in rows(done):
            print(f"            {row}")
        must(
            len({row.split("  ")[-1] for row in rows(done)}) == 1, "of one version each of Python, Ray and torch", done
        )
        with phase("ray up again"):
            done = laptop.ray("up", "-y", "--no-restart", str(laptop.file))
            must(done.returncode == 0, "changes nothing, and ends with 0", done)
        with dashboard(laptop):
            stranger = Laptop(laptop.home, laptop.checkout, {**laptop.env, "RAY_AUTH_TOKEN": "0" * 64})
            done = stranger.job("list")
            must(
                done.returncode != 0 and "Invalid authentication token" in done.stderr, "another token is refused", done
            )
            with phase("a job of 20 steps on three machines"):
                done = submit(laptop, "short", *OF_TRAINING, "--train.steps", "20")
                must(done.returncode == 0, "ends with 0", done)
            a_machine_dies(laptop, found[2])
        with phase("Ray is ended on all machines"):
            done = laptop.ray("exec", str(laptop.file), "python ~/ddpm/infra/nodes.py stop")
            must(done.returncode == 0 and "error" not in done.stdout, "ends with 0", done)
        with phase("ray down"):
            done = laptop.ray("down", "-y", str(laptop.file))
            must(done.returncode == 0, "ends with 0", done)
        seconds = wait_until(lambda: not any(each.processes(OF_THE_MACHINE) for each in found), "the last process", 60)
        print(f"{seconds:8.1f} s  later no process is left on any machine")


def a_machine_dies(laptop: Laptop, machine: Machine) -> None:
    run = CheckpointStore("s3://ssh-cluster/store/runs/long")

    def reached(step: int) -> Callable[[], bool]:
        return lambda: max(run.steps(), default=0) >= step

    often = ["--train.steps", "100000", "--train.checkpoint-every", "20", "--train.preview-every", "100000"]
    with phase("a long job's first checkpoint"):
        done = submit(laptop, "long", *OF_TRAINING, *often, wait=False)
        must(done.returncode == 0, "is submitted", done)
        wait_until(reached(20), "step 20", 300)
    time.sleep(20)
    machine.die()
    before = max(run.steps())
    with phase(f"machine {machine.name} died, its network with it, after step {before}: the next checkpoint"):
        wait_until(reached(before + 20), "a further step", 300)
    must(laptop.job("status", "long").stdout.count("RUNNING") > 0, "the job goes on, on two machines")
    switch_on(machine)
    with phase(f"machine {machine.name} is switched on again: it is in the cluster"):
        done = nodes(laptop)
        must(done.returncode == 0 and len(rows(done)) == 3, "three nodes", done)
    at = max(run.steps())
    wait_until(reached(at + 40), "40 steps more", 300)
    with phase("ray job stop"):
        done = laptop.job("stop", "long")
        must(done.returncode == 0, "ends with 0", done)
    said = laptop.job("logs", "long").stdout
    for line in said.splitlines():
        if re.search(r"node|worker|saved|warn", line) and "INFO" not in line:
            print(f"            | {line[:160]}")
    must("was saved" in said, "its last step was saved")


def user() -> None:
    """As an ordinary user without sudo."""
    life("ddpm")


def root() -> None:
    """As root."""
    life("root")


def mixed() -> None:
    """Machine c has another Python first on its PATH: this script's own, if that is another than the system's."""
    other = Path(sys.base_prefix) / "bin"
    found = sh("/usr/bin/python3", "--version"), sh(other / "python3", "--version")
    if found[0] == found[1]:
        print("            left out: this machine has one Python alone")
        return
    with machines("root", f'export PATH="{other}:$PATH"\n') as (laptop, _machines):
        up(laptop)
        with phase("the other one joins, machine c does not"):
            done = nodes(laptop, 120)
        line = next((line for line in done.stdout.splitlines() if line.startswith("error: ")), "")
        must(len(rows(done)) == 2 and "the head Python" in line, line, done)


CASES: dict[str, Callable[[], None]] = {case.__name__: case for case in (user, root, mixed)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    wanted = parser.parse_args().cases or list(CASES)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() or missing:
        what = (
            f"{', '.join(missing)} of the system"
            if missing
            else f"root, and this is {pwd.getpwuid(os.geteuid()).pw_name}"
        )
        print(f"error: the machines are namespaces, whose making needs {what}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the machines are taken down all the same
    for name in wanted:
        print(f"{name}: {(CASES[name].__doc__ or '').strip()}", flush=True)
        try:
            CASES[name]()
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print("all of it holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
