"""Admission: whether a request is taken, or answered at once that there is too much to do already.

The queue is bounded in completions and in tokens, and by the time to first token that a new request would see. That is
predicted from what stands before it in the fair order, prompts that are still being computed included. Take D completions
that decode, C that can run at once, and steps that have room for R rows of prompts beside them. What is ahead are t
prompt tokens and so many completions that k have to end before there is a slot, each after m tokens on average. That
takes at least t/R steps, and, as C*n/m completions end in n steps, at least k*m/C:

    time = max(t/R, k*m/C) * (a step of D rows) + t * (what one more row of a prompt takes)

With the cost model's 5 ms for a step of 8 rows, 0.1 ms a row, R = 256 and free slots, 2,000 tokens ahead take
2000/256 * 5 + 2000 * 0.1 = 239 ms. ``m`` are the tokens that all completions together generate from one end to the next.
D are those that run and half of those ahead, which join them one by one. What a row takes grows with the tokens that it
attends to, which are those of the prompts ahead and not of the request's own: a short prompt behind long ones waits long.
Prompts count in full although part of them may be found in the prefix cache: a prediction errs to the long side.

A bound is for nearly all that are accepted and not for their mean, so ``check`` is cautious: completions end as late as
they rarely do (``cautious_turns``), prompts have as little of a bounded step as stalls may leave them, and first tokens
come after ``margin`` times what is predicted. That follows how far off predictions were of late, as a retransmission
timer does with fewer deviations (Jacobson, "Congestion Avoidance and Control", 1988; RFC 6298): let first tokens have
come after 1.1 times what was predicted on average, and 0.15 times off that, then the next hardly takes more than 1.1 +
5 * 0.15 times. So a machine that is slower at times than at others, as where other tenants share its cores, accepts
less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from waferline_kernels.sequences import ExecutorLimits

from ..fabric.cost import CostModel
from .errors import OVERLOADED, RequestFailed
from .request import Request
from .scheduler import Scheduler

LEAST_MS, MOST_MS = 1e-3, 1e9  # of a time that is asked for
LEAST_MARGIN = 1.15  # over what predictions were off on average, for how far off the cost model is
CAUTION = 2.0  # standard deviations: how likely slots come free within the time that is reckoned with
SPREADS = 5.0  # mean deviations: how late a first token hardly ever comes
FIRST_SPREAD = 1 / 8  # of what is predicted, before first tokens have come
FIRST_TOKENS_RATE = 1 / 16  # by which how far off predictions are follows, after as many
OUTPUT_TOKENS_RATE = 1 / 32  # by which the average length of completions follows, after as many


@dataclass(frozen=True)
class AdmissionLimits:
    """None: no limit. ``max_waiting_requests``: completions that wait for a slot. ``max_waiting_tokens``: of their
    prompts. ``max_ttft_ms``: predicted milliseconds from a request's arrival to its first token.

    Raises TypeError or ValueError for what is none of that.
    """

    max_waiting_requests: int | None = None
    max_waiting_tokens: int | None = None
    max_ttft_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_waiting_requests", "max_waiting_tokens"):
            value: Any = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise TypeError(f"{name}: {value!r}, expected an integer or None")
            if value is not None and value < 0:
                raise ValueError(f"{name}: {value}, expected at least 0")
        check_milliseconds("max_ttft_ms", self.max_ttft_ms)


def check_milliseconds(field: str, value: Any) -> None:
    """Raise TypeError or ValueError where ``value`` is neither None nor a time that can be asked for."""
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise TypeError(f"{field}: {value!r}, expected milliseconds or None")
    if value is not None and not LEAST_MS <= value <= MOST_MS:
        raise ValueError(f"{field}: {value}, expected {LEAST_MS:g} to {MOST_MS:g}")


class Admission:
    """Decides for ``scheduler``, whose steps within ``limits`` take what ``cost_model`` says. No clock and no threads.

    A request counts from ``check`` on, although the scheduler is told of it (``taken_up``) only later.
    """

    def __init__(
        self,
        bounds: AdmissionLimits,
        scheduler: Scheduler,
        limits: ExecutorLimits,
        cost_model: CostModel,
    ) -> None:
        self.bounds = bounds
        self.num_output_tokens = 0.0  # of a completion, on average
        self._scheduler = scheduler
        self._limits = limits
        self._cost_model = cost_model
        self._num_ended = self._num_generated = 0
        # Of first tokens of late, on average; to begin with as if one that just met the bound had been predicted to.
        self._ttft_ms = self._predicted_ttft_ms = bounds.max_ttft_ms or 1.0
        self._deviation_ms = FIRST_SPREAD * self._predicted_ttft_ms
        self._arriving: set[Request] = set()

    def check(self, request: Request) -> None:
        """Let ``request`` in, or raise RequestFailed, code "overloaded", with the time after which to ask again."""
        if self.bounds == AdmissionLimits():
            return
        self._check_queue(request)
        if self.bounds.max_ttft_ms is not None:
            self._check_ttft(request, self.bounds.max_ttft_ms)
        self._arriving.add(request)

    def taken_up(self, request: Request) -> None:
        """The scheduler has been told of ``request``, or will never be."""
        self._arriving.discard(request)

    def ended(self, num_generated: int) -> None:
        """Learn from a completion that has ended when ``num_generated`` tokens of all had been generated. Those since the
        last end count, whosever they are: completions that have ended so far are the short ones among those at hand."""
        self._num_ended += 1
        rate = max(OUTPUT_TOKENS_RATE, 1 / self._num_ended)
        self.num_output_tokens += rate * (num_generated - self._num_generated - self.num_output_tokens)
        self._num_generated = num_generated

    @property
    def slowness(self) -> float:
        """How many times what was predicted first tokens took of late, or 1 where that is less."""
        return max(1.0, self._ttft_ms / self._predicted_ttft_ms)

    @property
    def margin(self) -> float:
        """How many times what is predicted the next first token hardly takes longer than."""
        slowness, spread = self.slowness, self._deviation_ms / self._predicted_ttft_ms
        return max(LEAST_MARGIN * slowness, slowness + SPREADS * spread)

    def begun(self, request: Request, ttft_ms: float) -> None:
        """Learn from ``request``, whose first token came ``ttft_ms`` after it: stalls, Python's time and what neighbours
        take of a shared machine are in no prediction."""
        if not request.predicted_ttft_ms:
            return  # there is no bound
        expected_ms = self._ttft_ms / self._predicted_ttft_ms * request.predicted_ttft_ms
        self._deviation_ms += FIRST_TOKENS_RATE * (abs(ttft_ms - expected_ms) - self._deviation_ms)
        self._ttft_ms += FIRST_TOKENS_RATE * (ttft_ms - self._ttft_ms)
        self._predicted_ttft_ms += FIRST_TOKENS_RATE * (request.predicted_ttft_ms - self._predicted_ttft_ms)

    def predict_ttft_ms(self, request: Request) -> float:
        """Milliseconds until the first token of ``request``, were it taken now."""
        return sum(self._predict(request))

    def _check_queue(self, request: Request) -> None:
        scheduler, bounds = self._scheduler, self.bounds
        own, own_tokens = _size([request])
        arriving, arriving_tokens = _size(self._arriving)
        waiting, tokens = len(scheduler.waiting) + arriving, scheduler.waiting.num_tokens + arriving_tokens
        is_idle = not waiting and not scheduler.num_running
        num_free = self._num_free_slots()
        if is_idle or waiting + own <= num_free:
            return
        mean_tokens = (tokens + own_tokens) / (waiting + own)
        for name, value, bound, tokens_each in (
            ("max_waiting_requests", waiting + own - num_free, bounds.max_waiting_requests, mean_tokens),
            ("max_waiting_tokens", tokens + own_tokens, bounds.max_waiting_tokens, 1.0),
        ):
            if bound is not None and value > bound:
                over = (value - bound) * tokens_each
                later = self._milliseconds(over, mean_tokens / 2, 0 if num_free else over / mean_tokens)
                raise _overloaded(f"{name}: {value} with this request, expected at most {bound}", later)

    def _check_ttft(self, request: Request, max_ttft_ms: float) -> None:
        request.predicted_ttft_ms = self.predict_ttft_ms(request)
        ahead, own = self._predict(request, is_cautious=True)
        is_idle = ahead == 0 and not self._scheduler.num_running
        predicted = self.margin * (ahead + own)
        if not is_idle and predicted > max_ttft_ms:
            later = self.slowness * (ahead + own - max_ttft_ms / self.margin)
            raise _overloaded(f"max_ttft_ms: {predicted:.0f} are predicted, expected at most {max_ttft_ms:g}", later)

    def _predict(self, request: Request, is_cautious: bool = False) -> tuple[float, float]:
        """Milliseconds for what is ahead of ``request``, and for its own prompt. On average, or nearly always where it
        ``is_cautious``."""
        num_own = len(request.prompt_token_ids)
        num_ahead, num_tokens, attended = self._ahead_of(request)
        turns = max(0.0, num_ahead + 1 - self._num_free_slots())
        if is_cautious:
            turns = cautious_turns(turns)
        ahead = self._milliseconds(num_tokens, attended / max(1, num_tokens), turns, num_ahead / 2, is_cautious)
        return ahead, self._milliseconds(num_own, num_own / 2, 0, num_ahead, is_cautious)

    def _ahead_of(self, request: Request) -> tuple[float, float, float]:
        """What goes before ``request``: completions that wait; tokens of prompts, those that run included; and the tokens
        that these attend to, in all."""
        waiting = self._scheduler.waiting
        num_ahead, num_tokens = waiting.ahead_of(
            request.priority, request.tenant, len(request.prompt_token_ids), self.num_output_tokens
        )
        attended = sum(sequence.num_tokens**2 / 2 for sequence in waiting)
        attended *= num_tokens / max(1, waiting.num_tokens)
        for other in self._arriving:
            length = len(other.prompt_token_ids)
            num_ahead += other.params.n
            num_tokens += other.params.n * length
            attended += other.params.n * length**2 / 2
        for sequence in self._scheduler.running:
            rows = sequence.num_tokens - sequence.num_computed_tokens - 1
            num_tokens += rows
            attended += rows * (sequence.num_computed_tokens + rows / 2)
        return num_ahead, num_tokens, attended

    def _milliseconds(
        self, num_tokens: float, attended: float, turns: float, num_joining: float = 0, is_cautious: bool = False
    ) -> float:
        """The time to compute ``num_tokens`` of prompts, each of which attends to ``attended`` on average, beside what is
        running and ``num_joining`` completions more, and until ``turns`` completions have ended. Where it
        ``is_cautious`` prompts get as little of a step that is bounded as decoding and stalls may leave them."""
        running = self._scheduler.running
        decoding = max(1, min(self._limits.max_num_seqs, len(running) + int(num_joining)))
        context = max(1, sum(sequence.num_tokens for sequence in running))
        context += int(2 * attended * max(0, decoding - len(running)))
        room = max(1.0, self._limits.max_num_batched_tokens - decoding)
        predict = self._cost_model.predict_step_ms
        step = predict(decoding, context, decoding)
        full_step = predict(decoding + int(room), context + int(room * attended), decoding, context + int(attended))
        row = max(0.0, full_step - step) / int(room)
        target = self._scheduler.target
        if target is not None and row > 0:
            slow_step = LEAST_MARGIN * step
            left = target.least_budget_ms(slow_step) - slow_step if is_cautious else target.budget_ms(step) - step
            room = min(room, max(1.0, left / row))
        num_concurrent = decoding if self._scheduler.is_out_of_blocks else self._limits.max_num_seqs
        # Before the first completion ends, all that has been generated counts as one.
        length = self.num_output_tokens if self._num_ended else sum(sequence.num_output_tokens for sequence in running)
        num_steps = max(num_tokens / room, turns * length / num_concurrent)
        return num_steps * step + num_tokens * row

    def _num_free_slots(self) -> int:
        return 0 if self._scheduler.is_out_of_blocks else self._limits.max_num_seqs - self._scheduler.num_running


def cautious_turns(turns: float) -> float:
    """How many average times between two ends it takes until ``turns`` completions have ended, in all but the worst cases:
    they end at random, one as late as after four times the average, of thirty the last hardly later than 1.4 times. It is a
    quantile of the gamma distribution, in Wilson's and Hilferty's approximation.

    >>> [round(cautious_turns(turns), 1) for turns in (0, 1, 4, 30)]
    [0.0, 3.8, 8.9, 41.9]
    """
    return turns * (1 - 1 / (9 * turns) + CAUTION / (3 * math.sqrt(turns))) ** 3 if turns > 0 else 0.0


def _overloaded(message: str, milliseconds: float) -> RequestFailed:
    return RequestFailed(OVERLOADED, message, max(1, math.ceil(milliseconds)))


def _size(requests: Iterable[Request]) -> tuple[int, int]:
    """Completions, and the prompt tokens of all of them."""
    sizes = [(request.params.n, len(request.prompt_token_ids)) for request in requests]
    return sum(n for n, _ in sizes), sum(n * tokens for n, tokens in sizes)
