"""Resume state is saved while training goes on: each rank copies its share in host memory, and a thread of its own writes the copy.

Training waits for the copy alone. A slot is sealed once every rank has written and synced its file, which all ranks learn at the same
moment, between two updates; until then it does not exist, and the other slot does. When a state is due, or training ends, before the
last one is written, that one is waited for: states never pile up in memory.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from torch import Tensor

from nanochat import progress
from nanochat.runtime import Runtime
from nanochat.train.host_memory import available_bytes
from nanochat.train.resume import ResumeFolder

USABLE_SHARE = 0.5  # of free host memory, for copies: batches, validation and the file system want some too
LOOK_S = 1.0


class Saver:
    """Saves states of one training on this rank. Every rank has one, and calls `start`, `seal` and `finish` together with the others."""

    def __init__(self, resume: ResumeFolder, runtime: Runtime, *, say: Callable[[str], None], on_saved: Callable[[], None]) -> None:
        self.resume, self.runtime, self.say, self.on_saved = resume, runtime, say, on_saved
        self.thread = ThreadPoolExecutor(1, "save")
        self.writing: Future[str] | None = None
        self.slot, self.counters = "", dict[str, Any]()
        self.pieces = 0  # written by the thread
        self.said = False

    @property
    def is_pending(self) -> bool:
        """Whether a state is not sealed yet; the same on every rank."""
        return self.writing is not None

    @property
    def is_writing(self) -> bool:
        """Whether this rank's share is not on disk yet."""
        return self.writing is not None and not self.writing.done()

    def start(self, counters: Mapping[str, Any], tensors: Mapping[str, Tensor], *, in_background: bool) -> None:
        """Begin to save the state that `tensors` are now: they may change as soon as this returns."""
        self.finish()
        self.slot, self.counters = self.resume.next_slot, dict(counters)
        if self.runtime.is_main:
            self.resume.free(self.slot)
        self.runtime.barrier()  # no rank writes into a slot that still exists
        if in_background and self._fits(tensors):
            copies = {name: tensor.to("cpu", copy=True) for name, tensor in progress.each(tensors.items())}
            self.writing = self.thread.submit(self._write, copies, self._count)
            return
        self.writing = Future()
        self.writing.set_result(self._write(tensors, progress.beat))

    def _count(self) -> None:
        self.pieces += 1

    def _write(self, tensors: Mapping[str, Tensor], on_piece: Callable[[], object]) -> str:
        digest = self.resume.write(self.slot, tensors, rank=self.runtime.rank, ranks=self.runtime.world_size, on_piece=on_piece)
        if self.runtime.world_size == 1:  # nobody to wait for
            self._seal([digest])
        return digest

    def _seal(self, digests: list[str]) -> None:
        if self.runtime.is_main:
            self.resume.seal(self.slot, self.counters, digests)
            self.on_saved()

    def seal(self) -> None:
        """Make the state exist that all ranks have written. What went wrong in this rank's thread is raised here."""
        assert self.writing is not None
        digest = self.writing.result()
        self.writing = None
        if self.runtime.world_size > 1:
            self._seal([part.hex() for part in self.runtime.gather_bytes(bytes.fromhex(digest))])
        self.resume.last_saved = self.slot

    def finish(self) -> None:
        """Wait until what was begun is saved."""
        self._wait()
        if self.writing is not None:
            self.seal()

    def _wait(self) -> None:
        while self.writing is not None and not self.writing.done():
            before = self.pieces
            wait([self.writing], LOOK_S)
            if self.pieces > before:  # the thread itself never says that this rank is alive
                progress.beat()

    def close(self) -> None:
        """End the thread, whatever it was doing; what it began but no rank has sealed is lost, and the state before it is used."""
        self._wait()
        self.thread.shutdown()

    def _fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether the ranks of this machine may copy their shares; says once if not."""
        size = self.runtime.ranks_per_node * sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        free = available_bytes()
        if size <= USABLE_SHARE * free:
            return True
        if not self.said:
            self.said = True
            self.say(f"state of {size / 1e9:.1f} GB is saved without a copy, training waits for the disk: only {free / 1e9:.1f} GB of host memory are free")
        return False
