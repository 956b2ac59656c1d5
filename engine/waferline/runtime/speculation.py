"""Speculation: which drafts a step verifies, judged by what they have gained and cost so far.

A step that only samples, one row a sequence, waits for the weights that it sweeps; some rows more cost little. They
verify drafts: guesses at a sequence's next tokens, of which those count that the sampler would have given anyway. So
drafts change when tokens come and never which, and whether to draft can depend on measured times.

For each sequence it is estimated how likely its next draft token is right, given that those before are: from what its
drafts of late came to, be they verified or merely compared with what came without. With what steps of so many rows
were measured to take, that gives the number of drafts that makes the most tokens a second, often none.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

from waferline_kernels.sequences import KV_BLOCK_SIZE, ExecutorLimits, SequenceTable

from ..fabric.cost import StepShape
from .drafter import Drafter, SpeculativeConfig
from .sequence import Sequence
from .step_builder import LatencyTarget, ScheduledStep

TURNAROUND_S = 2.5e-4  # that Python takes between two runs, about: 0.2 to 0.3 ms were measured
LOOKUP_SHARE = 0.005  # of the time, that runs may be cut short for to look for drafts again
FIRST_ACCEPTANCE, FIRST_WEIGHT = 0.5, 2  # an estimate to begin with, as if from so many tokens: Laplace's rule
MIN_ACCEPTANCE = 0.1  # below it no row is cheap enough, whatever seems to have been measured
SLOWEST_ACCEPTANCE_RATE = 0.05  # by which an estimate still follows after many tokens
NUM_TIMES = 5  # of like steps, of which the median counts
PLAIN_STEPS = 3  # without drafts, before any has some
RETRY_STEPS = 256  # of one kind, with drafts or without, after which it is measured anew what the other takes


@dataclass
class DraftCounts:
    """Of drafts that steps have verified."""

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0


class Drafting:
    """What is known of one sequence's drafts."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self.acceptance = FIRST_ACCEPTANCE  # how likely the next draft token is right, given that those before are
        self._num_compared = 0
        self._proposal: list[int] = []
        self._proposed_at = 0  # tokens of the sequence then

    def propose(self, token_ids: list[int], max_tokens: int) -> list[int]:
        self._proposal, self._proposed_at = self._drafter.propose(token_ids, max_tokens)[:max_tokens], len(token_ids)
        return self._proposal

    def compare(self, token_ids: list[int]) -> int:
        """Learn from what came instead of the proposal; how many tokens of it came."""
        num_right = 0
        for guess, token in zip(self._proposal, token_ids[self._proposed_at :], strict=False):
            self._num_compared += 1
            rate = max(SLOWEST_ACCEPTANCE_RATE, 1 / (FIRST_WEIGHT + self._num_compared))
            self.acceptance += rate * ((guess == token) - self.acceptance)
            if guess != token:
                break
            num_right += 1
        self._proposal = []
        return num_right


class StepTimes:
    """What steps take that sample one row of each sequence, by the number of their rows with drafts."""

    def __init__(self, num_seqs: int) -> None:
        self._num_seqs = num_seqs
        self._times: dict[int, deque[float]] = {}
        self._seconds: dict[int, float] = {}  # medians of `_times`
        self._has_drafts = False  # of the last step
        self._num_alike = 0  # steps of its kind in a row

    @property
    def want_plain(self) -> bool:
        """Whether the next step is to have no drafts, so that it can be measured; one was measured where not."""
        num_plain = len(self._times.get(self._num_seqs, ()))
        return num_plain < PLAIN_STEPS or (self._has_drafts and self._num_alike >= RETRY_STEPS)

    @property
    def run_length(self) -> int:
        """Steps without drafts to take before drafts are looked for again."""
        return math.ceil(TURNAROUND_S / LOOKUP_SHARE / self.of(self._num_seqs))

    def cost(self, rows: int) -> float:
        """Seconds of a step of ``rows``, with its part of what lies between two runs."""
        return self.of(rows) + TURNAROUND_S / (1 if rows > self._num_seqs else self.run_length)

    def of(self, rows: int) -> float:
        """Seconds of a step of ``rows`` within a run: on a line between two that were measured, beyond all as the last."""
        below = max(at for at in self._seconds if at <= rows)
        above = min((at for at in self._seconds if at >= rows), default=below)
        share = (rows - below) / (above - below) if above > below else 0.0
        return self._seconds[below] + share * (self._seconds[above] - self._seconds[below])

    def observe(self, rows: int, seconds: float, num_steps: int) -> None:
        """Learn from ``num_steps`` steps of ``rows`` that took ``seconds`` each. What was expected of them counts as the
        first time, so that not the first time alone, when something else had the machine, makes drafts look dear."""
        has_drafts = rows > self._num_seqs
        self._num_alike = num_steps + (self._num_alike if has_drafts == self._has_drafts else 0)
        self._has_drafts = has_drafts
        if not has_drafts and self._num_alike >= RETRY_STEPS:
            self._times, self._seconds = {rows: self._times[rows]}, {rows: self._seconds[rows]}
        if rows not in self._times:
            self._times[rows] = deque([self.of(rows)] if self._seconds else [], NUM_TIMES)
        self._times[rows].append(seconds)
        self._seconds[rows] = statistics.median_low(self._times[rows])


class Speculator:
    """Adds drafts to a scheduler's steps, and counts those that were verified."""

    def __init__(self, config: SpeculativeConfig, limits: ExecutorLimits, table: SequenceTable) -> None:
        self.counts = DraftCounts()
        self._config = config
        self._max_rows = min(limits.max_num_batched_tokens, limits.max_num_logits)
        self._table = table
        self._times: dict[int, StepTimes] = {}  # by the number of sequences

    def plan(self, step: ScheduledStep, target: LatencyTarget | None) -> None:
        """Add drafts to ``step``, which has one row of each of its sequences: it is taken once then. Where it gets none it
        is taken no more often than lets the next look for drafts come soon, and cost next to nothing. With a ``target``
        drafts take no more time than prefill may."""
        rows = len(step.sequences)
        times = self._times.setdefault(rows, StepTimes(rows))
        step.num_drafts = [0] * rows
        step.max_steps = min(step.max_steps, 1 if times.want_plain else times.run_length)
        if times.want_plain:
            return
        budget_ms = math.inf if target is None else target.budget_ms(target.predict_ms(step.shape))
        tokens = float(rows)  # that the step is expected to give
        for index, sequence in enumerate(step.sequences):
            drafting = self._drafting(sequence)
            drafts = drafting.propose(sequence.token_ids, self._room(sequence, rows))
            count, tokens = _best_count(times, rows, tokens, drafting.acceptance, len(drafts))
            shape = step.shape.plus(_shape_of_drafts(sequence, count))
            if count and (target is None or target.predict_ms(shape) <= budget_ms):
                self._add(step, index, drafts[:count])
                rows += count

    def _add(self, step: ScheduledStep, index: int, drafts: list[int]) -> None:
        sequence, count = step.sequences[index], len(drafts)
        start = sequence.num_tokens
        self._table.tokens[sequence.slot, start : start + count] = drafts
        step.batch["count"][index] += count
        step.batch["num_logits"][index] += count
        step.shape = step.shape.plus(_shape_of_drafts(sequence, count))
        step.num_drafts[index] = count
        step.max_steps = 1

    def update(self, step: ScheduledStep, num_steps: int, seconds: float) -> None:
        """Learn from ``step``, which was planned, and taken ``num_steps`` times in ``seconds``. As long as no times are
        given, nothing is drafted."""
        rows = len(step.sequences) + sum(step.num_drafts)
        if seconds > 0:
            self._times[len(step.sequences)].observe(rows, seconds / num_steps, num_steps)
        for sequence, count in zip(step.sequences, step.num_drafts, strict=True):
            num_accepted = min(count, self._drafting(sequence).compare(sequence.token_ids))
            self.counts.num_drafts += count > 0
            self.counts.num_draft_tokens += count
            self.counts.num_accepted_tokens += num_accepted

    def _drafting(self, sequence: Sequence) -> Drafting:
        if sequence.drafting is None:
            sequence.drafting = Drafting(self._config.make_drafter(sequence))
        return sequence.drafting

    def _room(self, sequence: Sequence, rows: int) -> int:
        """Drafts for which there are rows, blocks, and tokens that may be sampled after them."""
        return max(
            0,
            min(
                self._config.num_speculative_tokens,
                self._max_rows - rows,
                len(sequence.block_ids) * KV_BLOCK_SIZE - sequence.num_tokens,
                sequence.max_num_tokens - sequence.num_tokens - 1,
            ),
        )


def _shape_of_drafts(sequence: Sequence, count: int) -> StepShape:
    """Of the rows that ``count`` drafts add to the one of the last token."""
    return StepShape.of_chunk(sequence.num_tokens, count, count)._replace(kv_tokens=count)


def _best_count(times: StepTimes, rows: int, tokens: float, acceptance: float, most: int) -> tuple[int, float]:
    """How many of up to ``most`` drafts of one sequence make for the most tokens a second, in a step that has ``rows`` for
    ``tokens`` without them; and the tokens that it is expected to give with them.

    Drafts that are right with probability a each, given those before, give a + a^2 + ... tokens.
    """
    best = 0, tokens
    if acceptance < MIN_ACCEPTANCE:
        return best
    best_rate = tokens / times.cost(rows)
    likelihood = 1.0
    for count in range(1, most + 1):
        likelihood *= acceptance
        tokens += likelihood
        if tokens / times.cost(rows + count) > best_rate:
            best, best_rate = (count, tokens), tokens / times.cost(rows + count)
    return best
