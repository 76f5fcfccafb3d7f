"""Machines that are namespaces of one Linux host: each has its own address, processes, host name, homes, /tmp and /dev/shm.

They hang on a bridge. Nothing is kept in memory: a machine is found again by its name, so who starts it need not live on.
Needs root, iproute2 and util-linux.
"""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

MTU = "1400"
INIT = """
set -e
hostname "$NAME"
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
IFS=:; number=0
for each in $VISIBLE; do mkdir /run/$((++number)) && mount --bind "$each" /run/$number; done
for each in home root tmp; do mount --bind "$FOLDER/$each" "/$each"; done
number=0
for each in $VISIBLE; do mkdir -p "$each" && mount --bind /run/$((++number)) "$each"; done
unset IFS FOLDER VISIBLE
cd /
"""


def sh(*command: str | Path, check: bool = True, env: Mapping[str, str] | None = None) -> str:
    """What a command says; RuntimeError with all of it where it fails."""
    done = subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout


@dataclass(frozen=True)
class Network:
    """A bridge with this host's address on it, the first of a /24."""

    bridge: str  # at most 15 characters
    prefix: str  # as 10.89.0

    @property
    def gateway(self) -> str:
        return f"{self.prefix}.1"

    def up(self) -> None:
        """Once; it fails where the bridge or the addresses are in use."""
        if f"{self.prefix}." in sh("ip", "-4", "addr"):
            raise RuntimeError(f"{self.prefix}.0/24 is in use on this machine")
        sh("ip", "link", "add", self.bridge, "type", "bridge")
        sh("ip", "addr", "add", f"{self.gateway}/24", "dev", self.bridge)
        sh("ip", "link", "set", self.bridge, "mtu", MTU, "up")

    def is_up(self) -> bool:
        return Path("/sys/class/net", self.bridge).exists()

    def down(self) -> None:
        sh("ip", "link", "del", self.bridge, check=False)


@dataclass(frozen=True)
class Machine:
    """One that is not there, but for its folder, until it is started."""

    name: str
    number: int  # of its address in the network, 2 to 254
    network: Network
    folder: Path

    @property
    def address(self) -> str:
        return f"{self.network.prefix}.{self.number}"

    @property
    def namespace(self) -> str:
        return f"{self.network.bridge}-{self.name}"  # at most 15 characters: its link has the same name

    def start(
        self, script: str, env: Mapping[str, str], log: Path, visible: Iterable[Path] = ()
    ) -> subprocess.Popen[bytes]:
        """Switch it on; it is off when `script`, run by bash, has ended.

        `visible` are folders that its own homes and /tmp shall not hide.
        """
        inside = ["ip", "netns", "exec", self.namespace]
        sh("ip", "netns", "add", self.namespace)
        sh("ip", "link", "add", self.namespace, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        sh("ip", "link", "set", self.namespace, "mtu", MTU, "master", self.network.bridge, "up")
        for command in (
            "link set lo up",
            f"addr add {self.address}/24 dev eth0",
            f"link set eth0 mtu {MTU} up",
            f"route add default via {self.network.gateway}",
        ):
            sh(*inside, "ip", *command.split())
        for each in ("home", "root", "tmp"):
            (self.folder / each).mkdir(parents=True, exist_ok=True)
        (self.folder / "tmp").chmod(0o1777)
        spaces = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        given = {"NAME": self.name, "FOLDER": str(self.folder), "VISIBLE": ":".join(map(str, visible))}
        with open(log, "ab") as file:
            return subprocess.Popen(
                [*inside, *spaces, "bash", "-c", INIT + script],
                env={**env, **given},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def die(self) -> None:
        """The network falls silent, and every process is gone; nothing where it is off."""
        sh("ip", "link", "set", self.namespace, "down", check=False)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        sh("ip", "link", "del", self.namespace, check=False)
        sh("ip", "netns", "del", self.namespace, check=False)

    def pids(self) -> list[int]:
        return [int(pid) for pid in sh("ip", "netns", "pids", self.namespace, check=False).split()]

    def is_on(self) -> bool:
        return bool(self.pids())

    def processes(self, own: str = r"unshare|bash -c \nset -e") -> list[str]:
        """The commands that run there, but for the machine's own."""
        found = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                command = (
                    Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                )
                if command and not re.match(own, command):
                    found.append(command)
        return found
