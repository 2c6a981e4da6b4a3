"""Rows on their way to a GPU: copied from pinned memory on a stream of its own, while the GPU computes something else.

What is computed with the rows waits for their own copy alone, and the copy for nothing that is computed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Rows = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Copy:
    """A copy that was started."""

    tensor: Tensor  # on the GPU
    done: Any  # event, recorded behind the copy
    cuda: Any = torch.cuda

    def arrived(self) -> Tensor:
        """The rows, for the stream that asks: its work waits on the GPU, this process does not."""
        asking = self.cuda.current_stream(self.tensor.device)
        asking.wait_event(self.done)
        self.tensor.record_stream(asking)  # its memory is the other stream's: not to be given away before this one is done with it
        return self.tensor


class SentRows(np.ndarray[Any, np.dtype[np.int64]]):
    """Rows as they were read, and their copy. Parts of them have none."""

    on_gpu: Copy | None = None


class Sender:
    """Starts copies to one GPU, from any thread. `cuda`: torch's, or what stands for it in a test."""

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self.device, self.cuda = device, cuda
        self.stream = cuda.Stream(device)

    def send(self, rows: Rows) -> SentRows:
        """The same rows, their copy under way."""
        # each thread begins on GPU 0, where every rank would leave a context of half a gigabyte
        with self.cuda.device(self.device), self.cuda.stream(self.stream):
            # torch keeps pinned memory as it is until the copy is done, even if nobody holds it any more
            tensor = torch.from_numpy(rows).pin_memory().to(self.device, non_blocking=True)
            done = self.cuda.Event()
            done.record(self.stream)
        sent = rows.view(SentRows)
        sent.on_gpu = Copy(tensor, done, self.cuda)
        return sent
