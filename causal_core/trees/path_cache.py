"""Keys and values of paths that grow by some nodes at a time: what decoding attends to.

Shape legend: R paths in use, n new nodes of each, j key/value heads, d width of a key, e width of
a value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Kept = Sequence[tuple[Tensor, Tensor]]


class PathCache:
    """Room for some paths, the ones in use first; a position is a column.

    Args:
        like: Keys and values of each layer of a forward over trees, for their shapes.
        paths: At most in use at once.
        width: Nodes of the longest path in the end.
    """

    def __init__(self, like: Kept, paths: int, width: int) -> None:
        self._layers = [
            (
                k.new_zeros(paths, k.shape[1], width, k.shape[3]),
                v.new_zeros(paths, v.shape[1], width, v.shape[3]),
            )
            for k, v in like
        ]
        self.paths = paths
        self.lengths: list[int] = []  # of the paths in use
        self.attended: list[int | None] = []  # as in `TreeBlocks`
        self._masks: dict[int | None, Tensor] = {}
        self._columns = 0
        self._ends = torch.zeros(0, 1, dtype=torch.long)  # [R, n]: columns of the new nodes

    def add(self, kept: Kept, row: int, path: Tensor) -> None:
        """Copies the keys and values of a path's nodes from a forward over trees."""
        place, length = len(self.lengths), len(path)
        for own, given in zip(self._layers, kept, strict=True):
            for to, source in zip(own, given, strict=True):
                # By nodes, as projections leave them in memory: by columns, all would be copied.
                nodes = source[row].transpose(0, 1).index_select(0, path.to(source.device))
                to[place, :, :length] = nodes.transpose(0, 1)
        self.lengths.append(length)

    def remove(self, place: int) -> None:
        """Frees a path's place; the last path in use moves there."""
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        if place != last:
            self.lengths[place] = length
            for own in self._layers:
                for values in own:
                    values[place, :, :length] = values[last, :, :length]

    def grow(self, device: torch.device, count: int = 1) -> Tensor:
        """Begins a forward over `count` more nodes of every path; their positions [R, n]."""
        lengths = torch.tensor(self.lengths, device=device)
        self._ends = lengths[:, None] + torch.arange(count, device=device)
        self._columns = max(self.lengths) + count
        self._masks, self.attended = {}, []
        self.lengths = [length + count for length in self.lengths]
        return self._ends

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values [R, j, columns, d and e] with those of the new nodes
        ([R, j, n, d and e])."""
        keys, values = self._layers[len(self.attended) - 1]
        count = len(self.lengths)
        rows, ends = torch.arange(count, device=key.device)[:, None], self._ends.to(key.device)
        keys[rows, :, ends] = key.transpose(1, 2)
        values[rows, :, ends] = value.transpose(1, 2)
        return keys[:count, :, : self._columns], values[:count, :, : self._columns]

    def within(self, window: int | None) -> Tensor:
        """[R, 1, n, columns] bool: what the new nodes attend to, of the last `window` nodes."""
        if window is not None and window >= self._columns:
            window = None
        if window not in self._masks:
            columns = torch.arange(self._columns, device=self._ends.device)
            ends = self._ends[:, :, None]
            allowed = columns <= ends
            if window is not None:
                allowed &= ends - columns < window
            self._masks[window] = allowed[:, None]
        return self._masks[window]
