"""AWS for Ray's autoscaler: a node on the spot market, and on demand where there is none.

Ray's own way is two node types with a `priority` each. Its release 2.60 passes over a type only whose request timed out; one that
AWS refuses at once, as it does spot machines, it asks for again every second, and never takes the other.
"""

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

NO_SPOT = {
    "InsufficientInstanceCapacity",
    "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow",
    "UnfulfillableCapacity",
}
"""What EC2 calls it when it has no machine at the spot price, or none more for this account."""
_logger = logging.getLogger(__name__)


class SpotFirst(AWSNodeProvider):  # type: ignore[misc]
    """Asks for what a node type says, then for the same on demand. Named as `module` in infra/aws/cluster.yaml."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> Any:
        try:
            return super().create_node(node_config, tags, count)
        except NodeLaunchException as error:
            if "InstanceMarketOptions" not in node_config or error.category not in NO_SPOT:
                raise
            _logger.warning("no spot machine (%s): on demand instead", error.category)
        on_demand = {name: value for name, value in node_config.items() if name != "InstanceMarketOptions"}
        return super().create_node(on_demand, tags, count)
