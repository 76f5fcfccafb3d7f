"""How the workers of a training reach one another."""

import os
from dataclasses import dataclass
from typing import Any

import ray
import ray.util
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


@dataclass
class WorkerNetwork(TorchConfig):  # type: ignore[misc]
    """Ray's, but that each worker names the network interface of its node first."""

    @property
    def backend_cls(self) -> type[Any]:
        return _OverNodeAddresses


class _OverNodeAddresses(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)


def name_interface() -> None:
    """Have gloo listen at the node's address, unless the environment says where.

    By itself it listens where the machine's name leads, which is 127.0.1.1 in the /etc/hosts of a stock Debian or Ubuntu: no worker
    on another machine gets there. Interfaces may have other names on other nodes, so each worker finds its own.
    """
    import psutil  # type: ignore[import-untyped]  # which Ray brings

    address = ray.util.get_node_ip_address()
    names = [name for name, found in psutil.net_if_addrs().items() if any(each.address == address for each in found)]
    if names:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", names[0])
