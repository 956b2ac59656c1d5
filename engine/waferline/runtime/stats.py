"""What an engine tells of itself: vLLM's names wherever it has one."""

from __future__ import annotations

import msgspec


class EngineStats(msgspec.Struct, kw_only=True):
    """Counters (``_total``) since the engine started, gauges of this moment, and what it was started with."""

    num_requests_running: int  # sequences with a slot
    num_requests_waiting: int  # sequences without
    num_tokens_waiting: int  # theirs: of their prompts, and of what they had before they were preempted
    oldest_wait_seconds: float  # of those that wait, since its request arrived
    requests_begun_total: int  # requests of which a sequence has had a slot
    request_queue_time_seconds_total: float  # of those, from the arrival to the first slot
    kv_cache_usage: float  # share of the KV blocks that running sequences hold, 0 to 1
    num_preemptions_total: int
    prefix_cache_queries_total: int  # tokens looked up in the prefix cache
    prefix_cache_hits_total: int  # tokens found there
    spec_decode_num_drafts_total: int  # of a sequence, that a step verified
    spec_decode_num_draft_tokens_total: int  # tokens of those drafts
    spec_decode_num_accepted_tokens_total: int  # tokens of those drafts that were the ones sampled
    prompt_tokens_total: int
    generation_tokens_total: int
    request_success_total: dict[str, int]  # completions by finish reason
    request_errors_total: dict[str, int]  # requests by error code
    steps_total: int
    step_seconds_total: float  # spent in the executor

    model: str
    dtype: str
    backend: str
    level: str  # of the instruction set
    threads: int
    model_bytes: int
    residency: str  # one line: the bytes that a step reads, and which level of memory holds them
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_dtype: str
    kv_cache_bytes: int
    num_kv_blocks: int
    enable_prefix_caching: bool
    itl_target_ms: float | None
    max_waiting_requests: int | None
    max_waiting_tokens: int | None
    max_ttft_ms: float | None
    num_speculative_tokens: int  # of a draft at most; 0: nothing is drafted
