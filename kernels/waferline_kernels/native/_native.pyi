"""Types of the Cython bindings; see _native.pyx."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from ..sequences import SequenceTable

STRUCT_SIZES: dict[str, int]
LARGEST_HEAD_DIM: int

def supported_levels() -> tuple[str, ...]: ...
def measure_read(level: str, num_workers: int, cpus: Sequence[int] | None, size: int, sweeps: int) -> float: ...

class Core:
    def __init__(
        self,
        level: str,
        dims: tuple[int, ...],
        limits: tuple[int, ...],
        tensors: Sequence[tuple[int, ...]],
        shares: NDArray[Any],
        arena_bytes: Sequence[int],
        cpus: Sequence[int] | None,
        sequences: SequenceTable,
        entries: NDArray[Any],
        buffers: Sequence[NDArray[Any]],
        act_rows: Sequence[tuple[NDArray[Any], ...]],
    ) -> None: ...
    def load_table(self, tensor: int, padded: NDArray[Any]) -> None: ...
    def load_strips(self, tensor: int, strips: NDArray[Any]) -> None: ...
    def attach(self) -> None: ...
    def run(
        self, instructions: NDArray[Any], spans: NDArray[Any], max_steps: int, profile: NDArray[Any] | None
    ) -> tuple[int, int, int, int]: ...
    def ring_waiting(self) -> int: ...
    def ring_wait(self, timeout: float) -> bool: ...
    def ring_drain(self) -> NDArray[Any]: ...
    def close(self) -> None: ...
