"""What a run asks of a machine or a cluster, against what is there."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from causal_core.config import Config

_ACCELERATOR = "accelerator_type:"
_EPSILON = 1e-6  # fractions of a GPU add up with rounding


@dataclass(frozen=True)
class Ask:
    """`least` to `most` workers of `cpus` and `gpus` each, on nodes with `accelerator_type`."""

    least: int
    most: int
    cpus: float
    gpus: float
    accelerator_type: str | None = None

    @classmethod
    def of(cls, config: Config) -> Ask:
        resources = config.resources
        most = resources.max_workers
        least = resources.workers if isinstance(resources.workers, int) else resources.workers[0]
        return cls(
            least,
            most,
            resources.cpus_per_worker,
            resources.gpus_per_worker,
            resources.accelerator_type,
        )

    def __str__(self) -> str:
        if self.most == 0:
            return "no worker: the run is in the job's own process, on the head"
        count = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        where = f", on nodes with {self.accelerator_type}" if self.accelerator_type else ""
        return f"{count} worker{'s' * (self.most > 1)} of {self.cpus:g} CPU{gpus} each{where}"

    def totals(self) -> dict[str, float]:
        """Amounts of the least number of workers together, by Ray's names."""
        amounts = {"CPU": self.least * self.cpus, "GPU": self.least * self.gpus}
        return {name: amount for name, amount in amounts.items() if amount > 0}

    def fitting(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many of the workers fit on empty nodes (each worker on one node)."""
        if self.most == 0:
            return 0
        fits = 0
        for node in nodes_with(self.accelerator_type, nodes):
            here = (node.get("CPU", 0.0) + _EPSILON) // self.cpus
            if self.gpus:
                here = min(here, (node.get("GPU", 0.0) + _EPSILON) // self.gpus)
            fits += int(here)
        return min(fits, self.most)


def nodes_with(
    accelerator_type: str | None, nodes: Sequence[Mapping[str, float]]
) -> list[Mapping[str, float]]:
    """The nodes that have a device of a type by Ray's name; all for None."""
    if accelerator_type is None:
        return list(nodes)
    return [node for node in nodes if node.get(f"{_ACCELERATOR}{accelerator_type}", 0.0) > 0]


def accelerator_types(nodes: Sequence[Mapping[str, float]]) -> list[str]:
    """The types of device among the nodes, by Ray's names."""
    names = {name for node in nodes for name in node if name.startswith(_ACCELERATOR)}
    return sorted(name.removeprefix(_ACCELERATOR) for name in names)


def describe_nodes(nodes: Sequence[Mapping[str, float]]) -> str:
    """`3 nodes with 8 CPU and 2 GPU in all`."""
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    return f"{len(nodes)} node{'s' * (len(nodes) != 1)} with {cpus:g} CPU and {gpus:g} GPU in all"


def smallest_card(nodes: Sequence[Mapping[str, float]]) -> int | None:
    """Bytes of the smallest GPU among the nodes; None where Ray names none that is known.

    Ray gives every GPU node a resource such as `accelerator_type:A10G`.
    """
    from causal_core.amounts import card_bytes
    from causal_core.errors import ConfigError

    found = []
    for name in accelerator_types(nodes):
        with contextlib.suppress(ConfigError):
            found.append(card_bytes(name))
    return min(found, default=None)


def verdict(ask: Ask, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """What the user should know before the job waits; None when everything fits."""
    fits = ask.fitting(nodes)
    if fits >= ask.most:
        return None
    if fits >= ask.least:
        return f"{fits} of at most {ask.most} workers fit now; more join when nodes do"
    return (
        f"{fits} of {ask.least} workers fit on these nodes: the job waits for an autoscaler's, and "
        "is refused where none may start them (unless ray.wait_for_nodes=true)"
    )
