"""The CostModel: what a step takes, from the program, where its weights lie, and the fabric's limits.

An instruction takes as long as sweeping its bytes at the bandwidth that the whole step's footprint allows, doing its
multiply-adds at the peak, and then a barrier. What no figure of the fabric tells (how near kernels come to the limits,
what norms and sampling cost) is learnt from measured steps: `observe` corrects a factor for each of PARTS.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from waferline_kernels.kv_cache import kv_format
from waferline_kernels.program import Op, Program
from waferline_kernels.sequences import KV_BLOCK_SIZE

from .residency import Residency
from .spec import FabricSpec

PARTS = ("sweep", "compute", "attend", "rest")
"""Of a step: sweeping the weights, the arithmetic of matmuls, attention, and all the rest."""
DOUBT = 1.5  # of a factor's logarithm (standard deviation), before anything was measured
NOISE = 0.05  # of a step's logarithm: what no factor explains
FORGETTING = 1e-4  # the share of the first doubt that comes back with each step
SURPRISED_FORGETTING = 0.02  # the same with a step that was off by more than LARGEST_SURPRISE
LARGEST_SURPRISE = 2.0  # standard deviations; once more is taken for a disturbance, and counts as that; but see above
PRIVATE_ROWS = 4  # up to here every core prepares all rows for itself, without a barrier
FLOAT_BYTES = 4


class StepShape(NamedTuple):
    """A batch, as far as its cost goes. ``context_tokens``: over all rows, the tokens that each attends to, itself
    included. ``kv_tokens``: tokens whose keys and values are read, those that several rows of one sequence share once."""

    num_rows: int
    context_tokens: int
    num_logits_rows: int
    kv_tokens: int

    @classmethod
    def of(cls, num_rows: int, context_tokens: int, num_logits_rows: int, kv_tokens: int | None = None) -> StepShape:
        """``kv_tokens``, where not given, supposes one logits row for each sequence, and contexts of equal length."""
        if kv_tokens is None:
            kv_tokens = context_tokens * max(1, min(num_rows, num_logits_rows)) // max(1, num_rows)
        return cls(num_rows, context_tokens, num_logits_rows, kv_tokens)

    @classmethod
    def of_chunk(cls, start: int, num_rows: int, num_logits_rows: int) -> StepShape:
        """Of ``num_rows`` rows of one sequence from position ``start`` on.

        >>> StepShape.of_chunk(10, 3, 1)
        StepShape(num_rows=3, context_tokens=36, num_logits_rows=1, kv_tokens=13)
        """
        context_tokens = num_rows * start + num_rows * (num_rows + 1) // 2
        return cls(num_rows, context_tokens, num_logits_rows, start + num_rows)

    def plus(self, other: StepShape) -> StepShape:
        """Of both in one step."""
        rows, context_tokens, num_logits_rows, kv_tokens = other
        return StepShape(self[0] + rows, self[1] + context_tokens, self[2] + num_logits_rows, self[3] + kv_tokens)


@dataclass(frozen=True)
class _Cost:
    """One kind of instruction. Bytes are those of the core that has most; ``macs`` are of all cores that take part."""

    bytes: float = 0.0  # of weights
    kv_bytes: float = 0.0  # for each token whose keys and values are read
    macs: float = 0.0  # for each row
    context_macs: float = 0.0  # for each token attended to
    macs_per_second: float = 1.0
    row_bytes: float = 0.0  # of activations, for each row
    wanted_rows: bool = False
    barrier_seconds: float = 0.0
    waits_if_many: bool = False  # no barrier for few rows


class _StepCost(NamedTuple):
    """All instructions of a program together: bytes, and seconds as they depend on a step's shape."""

    bytes: float  # of weights, swept for any rows
    wanted_bytes: float  # for any rows whose logits are wanted
    compute: float  # for each row
    wanted_compute: float  # for each row whose logits are wanted
    kv_bytes: float  # for each token whose keys and values are read
    context_compute: float  # for each token attended to
    row: float  # of activations, for each row
    wanted_row: float  # for each row whose logits are wanted
    barrier: float
    barrier_if_many: float  # of rows
    barrier_if_many_wanted: float

    @classmethod
    def of(cls, costs: Iterable[_Cost], seconds_per_row_byte: float) -> _StepCost:
        sums: defaultdict[str, float] = defaultdict(float)
        for cost in costs:
            wanted = "wanted_" if cost.wanted_rows else ""
            sums[wanted + "bytes"] += cost.bytes
            sums[wanted + "compute"] += cost.macs / cost.macs_per_second
            sums[wanted + "row"] += cost.row_bytes * seconds_per_row_byte
            sums["kv_bytes"] += cost.kv_bytes
            sums["context_compute"] += cost.context_macs / cost.macs_per_second
            if_many = ("_if_many_wanted" if cost.wanted_rows else "_if_many") if cost.waits_if_many else ""
            sums["barrier" + if_many] += cost.barrier_seconds
        return cls(**{name: sums[name] for name in cls._fields})


@dataclass(frozen=True)
class Prediction:
    """Seconds of one instruction. Sweep and arithmetic are taken one after the other, although the longer of them is
    the limit: summed they fit the steps that were measured (of 1 to 400 rows, weights in L3 and in DRAM, AMX and AVX2)
    within 3 to 6% on average, and no worse than any smooth maximum that was tried."""

    bytes: float  # swept, over all cores: weights, keys and values
    macs: float
    sweep: float
    compute: float
    rows: float  # reading and writing activations
    barrier: float

    @property
    def seconds(self) -> float:
        return self.sweep + self.compute + self.rows + self.barrier


class CostModel:
    """Predicts steps of ``program`` over a KV cache of ``kv_dtype``. Pure arithmetic: no clock, no threads; a few
    microseconds a prediction."""

    def __init__(self, program: Program, residency: Residency, fabric: FabricSpec, kv_dtype: str) -> None:
        self._residency = residency
        self._curve = fabric.curve
        self._cores = fabric.cores
        self._near_bandwidth = fabric.curve.bytes_per_second[0]
        self._program = program
        self._swept_bytes = program.swept_bytes
        self._kv_token_bytes = program.dims.kv_block_bytes(kv_format(kv_dtype)) / KV_BLOCK_SIZE
        self._costs = [self._cost(instruction, fabric) for instruction in program.instructions]
        self._step = _StepCost.of(self._costs, self._cores / self._near_bandwidth)
        self._factors = [1.0] * len(PARTS)
        # The covariance of their logarithms.
        self._doubt = [[DOUBT**2 * (row == column) for column in PARTS] for row in PARTS]

    @property
    def factors(self) -> dict[str, float]:
        """How many times longer than the fabric's figures say each of PARTS takes."""
        return dict(zip(PARTS, self._factors, strict=True))

    def swept_bytes(self, shape: StepShape) -> float:
        """Bytes of weights, keys and values that a step of ``shape`` sweeps."""
        return self._swept_bytes + shape.kv_tokens * self._kv_token_bytes

    def predict_step_ms(
        self, num_rows: int, context_tokens: int, num_logits_rows: int, kv_tokens: int | None = None
    ) -> float:
        """Milliseconds of a step; see StepShape. With ``kv_tokens`` given it never falls as any of them grows."""
        shape = StepShape.of(num_rows, context_tokens, num_logits_rows, kv_tokens)
        return 1e3 * sum(self._parts(shape))

    def observe(
        self,
        num_rows: int,
        context_tokens: int,
        num_logits_rows: int,
        measured_ms: float,
        kv_tokens: int | None = None,
    ) -> None:
        """Learn from a step that took ``measured_ms``. Each factor follows as far as its part makes up the step and as it
        is not known yet, so that decoding corrects what sweeping takes and prefill what computing takes; it is a Kalman
        filter over the factors' logarithms. Raises ValueError for no positive time."""
        if not measured_ms > 0:
            raise ValueError(f"measured_ms: {measured_ms}, expected more than 0")
        parts = self._parts(StepShape.of(num_rows, context_tokens, num_logits_rows, kv_tokens))
        predicted = sum(parts)
        # Written out, for four are so few that any call costs more than what it computes.
        a, b, c, d = (part / predicted for part in parts)  # by which the step's logarithm follows those of the factors
        blame = [a * w + b * x + c * y + d * z for w, x, y, z in self._doubt]
        p, q, r, s = blame
        variance = a * p + b * q + c * r + d * s + NOISE**2
        limit = LARGEST_SURPRISE * math.sqrt(variance)
        surprise = math.log(measured_ms / (1e3 * predicted))
        learnt = min(max(surprise, -limit), limit) / variance
        forgetting = FORGETTING if abs(surprise) <= limit else SURPRISED_FORGETTING
        kept = 1.0 - forgetting
        self._factors = [factor * math.exp(part * learnt) for factor, part in zip(self._factors, blame, strict=True)]
        for at, (w, x, y, z) in enumerate(self._doubt):
            gain = blame[at] / variance
            row = [kept * (w - gain * p), kept * (x - gain * q), kept * (y - gain * r), kept * (z - gain * s)]
            row[at] += forgetting * DOUBT**2
            self._doubt[at] = row

    def predict(self, shape: StepShape) -> list[Prediction]:
        """What each instruction of the program takes, by the fabric's figures alone, without what was learnt."""
        bandwidth = self._core_bandwidth(shape)
        pairs = zip(self._program.instructions, self._costs, strict=True)
        return [self._predict(instruction, cost, shape, bandwidth) for instruction, cost in pairs]

    def _core_bandwidth(self, shape: StepShape) -> float:
        return self._curve.at(self.swept_bytes(shape)) / self._cores

    def _seconds(self, cost: _Cost, shape: StepShape, bandwidth: float) -> tuple[float, float, float, float]:
        """Sweeping, computing, reading and writing activations, and the barrier."""
        rows = shape.num_logits_rows if cost.wanted_rows else shape.num_rows
        waits = rows > PRIVATE_ROWS or not cost.waits_if_many
        return (
            (cost.bytes * (rows > 0) + cost.kv_bytes * shape.kv_tokens) / bandwidth,
            (cost.macs * rows + cost.context_macs * shape.context_tokens) / cost.macs_per_second,
            cost.row_bytes * rows * self._cores / self._near_bandwidth,
            cost.barrier_seconds if waits else 0.0,
        )

    def _parts(self, shape: StepShape) -> tuple[float, float, float, float]:
        """Corrected seconds of a step, by PARTS."""
        num_rows, context_tokens, num_logits_rows, kv_tokens = shape
        sweeping, computing, attending, resting = self._factors
        bandwidth, step = self._core_bandwidth(shape), self._step
        swept = step.bytes + (step.wanted_bytes if num_logits_rows else 0.0)
        rest = step.barrier + step.row * num_rows + step.wanted_row * num_logits_rows
        if num_rows > PRIVATE_ROWS:
            rest += step.barrier_if_many
        if num_logits_rows > PRIVATE_ROWS:
            rest += step.barrier_if_many_wanted
        return (
            swept / bandwidth * sweeping,
            (step.compute * num_rows + step.wanted_compute * num_logits_rows) * computing,
            (step.kv_bytes * kv_tokens / bandwidth + step.context_compute * context_tokens) * attending,
            rest * resting,
        )

    def _predict(self, instruction: np.void, cost: _Cost, shape: StepShape, bandwidth: float) -> Prediction:
        rows = shape.num_logits_rows if cost.wanted_rows else shape.num_rows
        swept = self._program.tensors[instruction["weight"]].nbytes if cost.bytes and rows else 0.0
        if cost.kv_bytes:
            swept = shape.kv_tokens * self._kv_token_bytes / self._program.dims.layers
        macs = cost.macs * rows + cost.context_macs * shape.context_tokens
        return Prediction(swept, macs, *self._seconds(cost, shape, bandwidth))

    def _cost(self, instruction: np.void, fabric: FabricSpec) -> _Cost:
        op, dims, where = Op(instruction["op"]), self._program.dims, self._residency
        k, n, wanted = int(instruction["k"]), int(instruction["n"]), bool(instruction["wanted_rows"])
        row_bytes = FLOAT_BYTES * (k + n) / where.cores
        barrier = fabric.links.barrier_of(where.cores_used)
        if op in (Op.MATMUL, Op.LOGITS):
            spec, place = self._program.tensors[instruction["weight"]], where.places[int(instruction["weight"])]
            peak = fabric.macs_per_second[spec.format.name] * place.cores / fabric.cores
            return _Cost(
                bytes=place.fullest_bytes,
                macs=n * k * (2 if spec.interleaved else 1),
                macs_per_second=peak,
                wanted_rows=wanted,
                barrier_seconds=barrier,
            )
        if op is Op.ATTEND:
            return _Cost(
                kv_bytes=self._kv_token_bytes / dims.layers / where.kv_cores,
                context_macs=2 * dims.heads * dims.head_dim,
                macs_per_second=fabric.macs_per_second["f32"] * where.kv_cores / fabric.cores,
                barrier_seconds=barrier,
            )
        if op in (Op.NORM, Op.QUANTIZE):
            return _Cost(row_bytes=row_bytes, wanted_rows=wanted, barrier_seconds=barrier, waits_if_many=True)
        return _Cost(row_bytes=row_bytes, wanted_rows=wanted or op is Op.SAMPLE, barrier_seconds=barrier)
