"""When a device's memory runs out in a step, the step is done again with smaller micro-batches.

By invariant I2 the gradient of the global batch is the same however it is cut. The workers decide
together: an attempt fails on all of them where it fails on one, while they can still go back.
"""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Callable, Iterator, Sequence

import torch

from causal_core.engines.base import Engine
from causal_core.errors import OneWorkerFailedError, RunFailedError
from causal_core.step.random_state import RandomState
from causal_core.tokens.triplet import TripletTokens
from causal_core.trees.needs import Needs
from causal_core.trees.packing import tree_nodes

log = logging.getLogger(__name__)

# What libraries say when it is not torch's own OutOfMemoryError.
_MESSAGES = (
    "can't allocate memory",  # torch's CPU allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # its handle and workspace did not fit
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",  # of segments that grow
    "Triton Error [CUDA]: out of memory",
)
# NCCL allocates for itself, at the first collective; its errors begin with the place.
_NCCL = re.compile(r"NCCL error.*(Cuda failure( \d+)? '?out of memory|Failed to CUDA calloc)", re.S)


class NodeBudget:
    """The most tree nodes of a micro-batch, padding included: halved when memory runs out.

    It stays halved, except that there is always room for a step's largest triplet.
    """

    def __init__(self, nodes: int, needs: Needs, engine: Engine, device: torch.device) -> None:
        self.nodes = self._first = nodes
        self.engine = engine
        self._needs, self._device = needs, device

    def room_for(self, triplets: Sequence[TripletTokens]) -> int:
        """The budget to cut triplets by."""
        if self.nodes == self._first:
            return self.nodes
        largest = max(tree_nodes(triplet, self._needs) for triplet in triplets)
        return max(self.nodes, min(largest, self._first))

    def attempts(self, mine: Sequence[TripletTokens]) -> Iterator[Attempt]:
        """Attempts at the gradients of a step, until memory is enough on all workers.

        Every attempt must be `run`; each begins with the random state that the first one had.

        Raises:
            RunFailedError: memory ran out and no smaller micro-batch is possible.
        """
        random = RandomState.of(self._device)
        attempt = Attempt(self, again=False)
        yield attempt
        while not attempt.enough_for_all:
            self._halve(mine, attempt.enough)
            random.restore()
            attempt = Attempt(self, again=True)
            yield attempt

    def _halve(self, mine: Sequence[TripletTokens], enough: bool) -> None:
        """Half of it, but room for this worker's largest triplet (`RunFailedError` if it is that
        already, on all workers)."""
        self.engine.discard()
        release_cached_memory(self._device)
        largest, name = max(((tree_nodes(t, self._needs), t.id) for t in mine), default=(1, ""))
        if not self.all_workers(enough or self.nodes > largest):
            raise RunFailedError(
                self.explain(f"with a single triplet (here at most {name!r}, {largest} tree nodes) "
                             "as micro-batch")
            )  # fmt: skip
        before, self.nodes = self.nodes, max(self.nodes // 2, largest)
        log.warning(
            "memory ran out: micro-batches have at most %d tree nodes from now on (before: %d); "
            "the optimizer step is done again. To plan for it: train.micro_batch_tokens=%d",
            self.nodes, before, self.nodes,
        )  # fmt: skip

    def all_workers(self, enough: bool) -> bool:
        """Whether something holds on all workers. Collective."""
        short = torch.tensor([float(not enough)], dtype=torch.float64)
        return not bool(self.engine.sum_over_workers(short)[0] > 0)

    def explain(self, where: str) -> str:
        """The message of an error."""
        return (
            f"the device's memory ran out {where}, with micro-batches of at most {self.nodes} "
            "tree nodes. Set train.gradient_checkpointing=true, model.quantization=nf4, a smaller "
            "lora.rank, data.max_length or train.micro_batch_tokens: `causal plan` shows what each "
            "saves. The same command then continues from the last checkpoint"
        )


class Attempt:
    """One attempt at a step's gradients, and whether memory was enough."""

    enough = False  # on this worker
    enough_for_all = False

    def __init__(self, budget: NodeBudget, again: bool) -> None:
        self._budget = budget
        self.again = again  # not the first one of the step

    def run(self, accumulate: Callable[[int, int], None], count: int) -> None:
        """Runs this worker's micro-batches and agrees with the others.

        Up to the last micro-batch no worker waits for another, so that they can agree before it.

        Args:
            accumulate: Runs the micro-batches from one number to before another.
            count: Micro-batches.

        Raises:
            OneWorkerFailedError: memory ran out where the others already wait for this worker.
        """
        engine = self._budget.engine
        if not engine.local_until_last:
            self._must(accumulate, 0, count, "under an engine that cannot go back")
            self.enough = self.enough_for_all = True
        elif engine.world_size == 1:
            self.enough = self.enough_for_all = _has_memory(accumulate, 0, count)
        else:
            self.enough = _has_memory(accumulate, 0, count - 1)
            self.enough_for_all = self._budget.all_workers(self.enough)
            if self.enough_for_all:
                self._must(accumulate, count - 1, count, "in the last micro-batch of a step")

    def _must(
        self, accumulate: Callable[[int, int], None], first: int, end: int, where: str
    ) -> None:
        if not _has_memory(accumulate, first, end):
            raise OneWorkerFailedError(self._budget.explain(where))


def _has_memory(accumulate: Callable[[int, int], None], first: int, end: int) -> bool:
    try:
        accumulate(first, end)
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # Its words alone: a handler that keeps records would keep the error's frames.
        log.info("memory ran out: %s", str(error))
    # From here on: within the block the error's frames hold what is to be freed.
    _free_failed_graph()
    return False


def _free_failed_graph() -> None:
    """Frees what a backward that failed keeps: what it had yet to run stays in autograd's queue of
    this thread, with all its saved tensors, until the next backward goes through that queue."""
    torch.zeros(1, requires_grad=True).sum().backward()
    gc.collect()  # of cycles through the frames of checkpointing


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the host, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = str(error)
    return any(text in said for text in _MESSAGES) or _NCCL.search(said) is not None


def release_cached_memory(device: torch.device) -> None:
    """Gives the allocator's free blocks back to the driver: smaller ones are needed now."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
