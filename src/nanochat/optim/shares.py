"""Who keeps what: each rank holds a share of the optimizer's state, sums the gradients of its share, and sends its new weights to all.

A matrix of Muon has one owner, since it is made orthogonal as a whole; owners are chosen so that all have about as much to compute. The
parameters of an AdamW group are cut, end to end, into pieces of equal length. Small groups are kept by everybody: cutting them saves nothing.

Everything is started at once and waited for where it is needed (NCCL: on its own stream; gloo: in threads of its own), in the same order on
every rank. Gloo of torch 2.13 has reduce_scatter and asynchronous gathers, so that CPUs and GPUs run the same code.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

EVERYBODY = -1
KEPT_WHOLE = 1 << 14  # elements of an AdamW group up to which every rank keeps all of it


class Piece(NamedTuple):
    """Elements start..stop of a parameter, flattened, that one rank keeps (or EVERYBODY)."""

    rank: int
    start: int
    stop: int


def matrix_cost(shape: Sequence[int]) -> int:
    """Multiplications of making a matrix orthogonal, up to a factor."""
    return shape[0] * shape[1] * min(shape)


def owners(shapes: Sequence[Sequence[int]], ranks: int) -> list[int]:
    """A rank for each matrix: the costliest first, each to whom has least to do; ties go to the lowest rank."""
    load, found = [0] * ranks, [0] * len(shapes)
    for place in sorted(range(len(shapes)), key=lambda place: -matrix_cost(shapes[place])):
        found[place] = min(range(ranks), key=lambda rank: load[rank])
        load[found[place]] += matrix_cost(shapes[place])
    return found


def cut(sizes: Sequence[int], ranks: int) -> list[list[Piece]]:
    """Pieces of parameters that are laid end to end and shared in equal lengths, the last ones perhaps shorter or empty."""
    length = -(-sum(sizes) // ranks)
    pieces: list[list[Piece]] = []
    begin = 0
    for size in sizes:
        first, last = begin // length, (begin + size - 1) // length
        bounds = [(rank, max(begin, rank * length), min(begin + size, (rank + 1) * length)) for rank in range(first, last + 1)]
        pieces.append([Piece(rank, low - begin, high - begin) for rank, low, high in bounds])
        begin += size
    return pieces


def layout(groups: Sequence[tuple[str, Sequence[Sequence[int]]]], ranks: int) -> list[list[list[Piece]]]:
    """Pieces of every parameter of every group; a group is its kind and the shapes of its parameters."""
    matrices = [tuple(shape) for kind, shapes in groups if kind == "muon" for shape in shapes]
    owner = iter(owners(matrices, ranks))
    found = []
    for kind, shapes in groups:
        sizes = [torch.Size(shape).numel() for shape in shapes]
        if ranks == 1:
            found.append([[Piece(0, 0, size)] for size in sizes])
        elif kind == "muon":
            found.append([[Piece(next(owner), 0, size)] for size in sizes])
        elif sum(sizes) <= KEPT_WHOLE:
            found.append([[Piece(EVERYBODY, 0, size)] for size in sizes])
        else:
            found.append(cut(sizes, ranks))
    return found


class Matrices:
    """Exchange of matrices that have one owner each. In place: nothing is copied and nothing padded."""

    def __init__(self, parameters: Sequence[Tensor], pieces: Sequence[Sequence[Piece]], rank: int) -> None:
        self.rank, self.owner = rank, {parameter: piece[0].rank for parameter, piece in zip(parameters, pieces, strict=True)}
        self.waiting: list[dist.Work | None] = []

    def prepare(self, parameters: Sequence[Tensor]) -> None:
        """Nothing to take memory for."""

    def forget(self) -> None:
        """Nothing was prepared."""

    def start_reduce(self) -> None:
        """Send the gradients to their owners, summed."""
        self.waiting = [dist.reduce(parameter.grad, dst=owner, async_op=True) for parameter, owner in self.owner.items() if parameter.grad is not None]

    def reduced(self, parameters: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(parameter, its own piece, summed gradient of that) of what this rank owns; the other gradients are forgotten."""
        _wait(self.waiting)
        mine = [(parameter, parameter, parameter.grad) for parameter in parameters if self.owner[parameter] == self.rank and parameter.grad is not None]
        for parameter in parameters:
            if self.owner[parameter] != self.rank:
                parameter.grad = None
        return mine

    def start_gather(self, parameters: Sequence[Tensor]) -> None:
        """Send new weights from their owners to all."""
        self.waiting += [dist.broadcast(parameter.detach(), src=self.owner[parameter], async_op=True) for parameter in parameters]

    def gathered(self) -> None:
        """All weights are new."""
        _wait(self.waiting)


class EndToEnd:
    """Exchange of parameters that are laid end to end and cut into pieces of equal length."""

    def __init__(self, parameters: Sequence[Tensor], pieces: Sequence[Sequence[Piece]], rank: int, ranks: int) -> None:
        self.parameters, self.rank, self.ranks = list(parameters), rank, ranks
        self.mine = {p: piece for p, parts in zip(parameters, pieces, strict=True) for piece in parts if piece.rank == rank}
        self.length = -(-sum(p.numel() for p in parameters) // ranks)
        self.whole: Tensor | None = None  # gradients on their way out, then weights on their way in
        self.share: Tensor | None = None
        self.waiting: list[dist.Work | None] = []

    def _end_to_end(self, tensors: Sequence[Tensor]) -> Tensor:
        """The values one after another, padded to a multiple of the ranks; without a copy where they are that already."""
        if len(tensors) == 1 and tensors[0].numel() == self.length * self.ranks and tensors[0].is_contiguous():
            return tensors[0].view(-1)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        return torch.nn.functional.pad(flat, (0, self.length * self.ranks - flat.numel()))

    def prepare(self, parameters: Sequence[Tensor]) -> None:
        """Lay the gradients end to end. What has none counts as 0 and is left alone afterwards."""
        self.whole = self._end_to_end([p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters])
        self.share = self.whole.new_empty(self.length)
        for parameter in self.parameters:
            parameter.grad = None  # from here on its memory is the buffer's

    def forget(self) -> None:
        """Give back what was prepared."""
        self.whole = self.share = None

    def start_reduce(self) -> None:
        """Sum gradients, each rank its piece."""
        assert self.share is not None and self.whole is not None
        self.waiting = [dist.reduce_scatter_single(self.share, self.whole, async_op=True)]

    def reduced(self, parameters: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(parameter, its own piece, summed gradient of that) of what this rank keeps."""
        _wait(self.waiting)
        assert self.share is not None
        self.whole, found, begin = None, [], 0
        for parameter, piece in self.mine.items():
            length = piece.stop - piece.start
            if any(parameter is other for other in parameters):
                found.append((parameter, parameter.detach().view(-1)[piece.start : piece.stop], self.share[begin : begin + length]))
            begin += length
        return found

    def start_gather(self, parameters: Sequence[Tensor]) -> None:
        """Send the new pieces of weights to all."""
        self.share = None
        self.whole = self._end_to_end([parameter.detach() for parameter in self.parameters])
        own = self.whole[self.rank * self.length : (self.rank + 1) * self.length]
        self.waiting = [dist.all_gather_single(self.whole, own, async_op=True)]

    def gathered(self) -> None:
        """All weights are new."""
        _wait(self.waiting)
        if self.whole is None:
            return
        begin = 0
        for parameter in self.parameters:
            if (new := self.whole[begin : begin + parameter.numel()]).data_ptr() != parameter.data_ptr():
                parameter.copy_(new.view_as(parameter))
            begin += parameter.numel()
        self.whole = None


class Copies:
    """Parameters that every rank keeps and updates for itself, with the same result."""

    def __init__(self) -> None:
        self.whole: Tensor | None = None
        self.waiting: list[dist.Work | None] = []

    def prepare(self, parameters: Sequence[Tensor]) -> None:
        """Lay the gradients end to end."""
        gradients = [parameter.grad.reshape(-1) for parameter in parameters if parameter.grad is not None]
        self.whole = torch.cat(gradients) if gradients else None

    def forget(self) -> None:
        """Give back what was prepared."""
        self.whole = None

    def start_reduce(self) -> None:
        """Sum gradients on all ranks."""
        if self.whole is not None:
            self.waiting = [dist.all_reduce(self.whole, async_op=True)]

    def reduced(self, parameters: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(parameter, itself, summed gradient)."""
        _wait(self.waiting)
        found, begin = [], 0
        for parameter in parameters:
            if parameter.grad is not None and self.whole is not None:
                parameter.grad = self.whole[begin : begin + parameter.numel()].view_as(parameter)
                begin += parameter.numel()
                found.append((parameter, parameter, parameter.grad))
        self.whole = None
        return found

    def start_gather(self, parameters: Sequence[Tensor]) -> None:
        """Nothing to send."""

    def gathered(self) -> None:
        """All weights are new."""


Exchange = Matrices | EndToEnd | Copies


def exchange_of(kind: str, parameters: Sequence[Tensor], pieces: Sequence[Sequence[Piece]], rank: int, ranks: int) -> Exchange:
    """How a group is exchanged between ranks."""
    if kind == "muon":
        return Matrices(parameters, pieces, rank)
    if all(piece.rank == EVERYBODY for parts in pieces for piece in parts):
        return Copies()
    return EndToEnd(parameters, pieces, rank, ranks)


def _wait(handles: list[dist.Work | None]) -> None:
    for handle in handles:
        if handle is not None:
            handle.wait()
    handles.clear()
