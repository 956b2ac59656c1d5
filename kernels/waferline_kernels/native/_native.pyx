# cython: language_level=3, boundscheck=False, wraparound=False
"""Bindings of the native executor: they own its memory, and check at the entry what C takes for granted."""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.unistd cimport getpid

import numpy as np

from ..aligned import aligned_zeros

cdef extern from "waferline.h":
    enum: NUM_BUFFERS, BUFFER_ACT, MAX_HEAD_DIM, TILE_N, NUM_FORMATS, NUM_KV_FORMATS
    ctypedef struct Instruction:
        pass
    ctypedef struct Share:
        int32_t first, count
        int64_t offset
    ctypedef struct Span:
        pass
    ctypedef struct Sampling:
        pass
    ctypedef struct Constraints:
        pass
    ctypedef struct Entry:
        pass
    ctypedef struct Dims:
        int32_t hidden, layers, heads, kv_heads, head_dim, ffn, vocab
    ctypedef struct Tensor:
        int32_t n, k, format, is_table
        int64_t strip_bytes, table_stride
        const float *table

cdef extern from "fetch.h":
    ctypedef struct Fetch:
        pass
    Fetch choose_fetch(int64_t bytes, int64_t total_bytes)

cdef extern from "kernels.h":
    ctypedef struct QuantizedRows:
        signed char *codes
        float *scales
        int32_t *sums
        int64_t codes_stride, groups_stride
    ctypedef struct KernelTable:
        const char *level
        # Only whether they are there is asked of these; C alone calls them.
        void *matmul[4]
        void *split
        void *rms_norm
        void *quantize
        void *attend[3]
        void *max
        void *argmax
        void *exp_sum
        int (*pack[4])(const float *, int32_t, int32_t, uint8_t *) noexcept nogil
    int64_t scratch_bytes(int64_t, int64_t)
    int64_t split_bytes(int64_t, int64_t)
    int64_t attend_scratch_floats(int32_t)

cdef extern from "levels.h":
    ctypedef const KernelTable *Kernels
    const Kernels *supported_kernels()
    const KernelTable *kernels_of_level(const char *)

cdef extern from "arena.h":
    void *arena_create(int64_t)
    void arena_destroy(void *, int64_t)

cdef extern from "gate.h":
    ctypedef struct Gate:
        pass
    void gate_init(Gate *)
    void gate_destroy(Gate *) nogil

cdef extern from "team.h":
    ctypedef struct Team:
        pass
    ctypedef void (*Job)(void *, int) noexcept nogil
    Team *team_create(int, int *)
    void team_destroy(Team *) nogil
    int team_leaves_cpu(const Team *)
    void team_attach(Team *)
    void team_run(Team *, Job, void *) nogil

cdef extern from "ring.h":
    ctypedef struct Ring:
        Entry *entries
        int64_t capacity, head, tail
        Gate published
        int has_own_cpu
    int64_t ring_waiting(Ring *) nogil
    void ring_wait(Ring *, int64_t) nogil

cdef extern from "sample.h":
    ctypedef struct SampleScratch:
        float *logits
        float *weights
        int32_t *ids
        int32_t *counts

cdef extern from "executor.h":
    ctypedef struct Limits:
        int32_t max_num_seqs, max_model_len, max_num_batched_tokens, max_num_logits, num_kv_blocks, max_blocks_per_seq
    ctypedef struct Sequences:
        int32_t *tokens
        int32_t *num_tokens
        int32_t *block_tables
        int32_t *num_blocks
        Sampling *sampling
        Constraints *constraints
        uint32_t *allowed_ids
        int64_t mask_words
        int32_t *stop_flags
        int32_t *wake
    ctypedef struct Activations:
        float *x
        QuantizedRows quantized
        uint8_t *halves
    ctypedef struct Largest:
        pass
    ctypedef struct Worker:
        uint8_t *arena
        int64_t swept_bytes
        Fetch fetch
        Activations act
        SampleScratch sample
        uint8_t *scratch
        Largest *largest
        float *attention
    ctypedef struct Row:
        pass
    ctypedef struct Executor:
        const KernelTable *kernels
        Team *team
        Dims dims
        Limits limits
        int num_workers
        Tensor *tensors
        const Share *shares
        Worker *workers
        Activations act
        float *buffers[NUM_BUFFERS]
        int64_t strides[NUM_BUFFERS]
        uint8_t *kv
        int32_t kv_format
        int64_t kv_tile
        Sequences sequences
        Ring ring
        const Instruction *instructions
        int32_t num_instructions
        int64_t *profile
        Row *rows
        int32_t *wanted
        Span *spans
        int32_t num_spans
    ctypedef struct Outcome:
        int32_t num_steps, reason, bad_slot
        int64_t nanoseconds
    Outcome executor_run(Executor *, int32_t) nogil

cdef extern from "bandwidth.h":
    double c_measure_read "measure_read"(const KernelTable *, int, int *, int64_t, int) nogil
    double measure_weights_read(Executor *, int) nogil

cdef extern from "limits.h":
    double c_measure_peak "measure_peak"(const KernelTable *, int, int *, int, int64_t) nogil
    double c_measure_barrier "measure_barrier"(int, int *, int) nogil

cdef struct StripsToLoad:
    Executor *executor
    const uint8_t *strips
    int tensor

STRUCT_SIZES = {
    "Instruction": sizeof(Instruction),
    "Share": sizeof(Share),
    "Span": sizeof(Span),
    "Sampling": sizeof(Sampling),
    "Constraints": sizeof(Constraints),
    "Entry": sizeof(Entry),
}
LARGEST_HEAD_DIM = MAX_HEAD_DIM


def supported_levels():
    """The instruction-set levels that this processor and operating system run, lowest first."""
    cdef const Kernels *kernels = supported_kernels()
    names = []
    while kernels[len(names)] != NULL:
        names.append(kernels[len(names)].level.decode())
    return tuple(names)


cdef const KernelTable *kernels_of(level) except NULL:
    cdef const KernelTable *kernels = kernels_of_level(level.encode())
    if kernels == NULL:
        raise ValueError(f"this machine has no level {level!r}")
    return kernels


def kernel_table(level):
    """The kernels of a supported level: (operation, code of the weights' format or, of ``attend``, of the KV cache's) each,
    -1 where it reads neither."""
    cdef const KernelTable *kernels = kernels_of(level)
    cdef int format
    matmuls = [("matmul", format) for format in range(NUM_FORMATS) if kernels.matmul[format] != NULL]
    rows = {
        "rms_norm": kernels.rms_norm != NULL,
        "quantize": kernels.quantize != NULL,
        "max": kernels.max != NULL,
        "argmax": kernels.argmax != NULL,
        "exp_sum": kernels.exp_sum != NULL,
    }
    attends = [("attend", format) for format in range(NUM_KV_FORMATS) if kernels.attend[format] != NULL]
    return [*matmuls, *attends, *((operation, -1) for operation, is_there in rows.items() if is_there)]


def measure_peak(level, int num_workers, cpus, int format, int64_t macs):
    """Multiply-adds a second of the team, each worker doing ``macs`` with the level's dot product for ``format``."""
    cdef const KernelTable *kernels = kernels_of(level)
    cpu_array = None if cpus is None else np.array(cpus, np.int32)
    cdef int *cpu_list = NULL if cpus is None else <int *>address(cpu_array)
    cdef double rate
    with nogil:
        rate = c_measure_peak(kernels, num_workers, cpu_list, format, macs)
    if rate < 0:
        raise MemoryError(f"no threads for {num_workers} workers")
    return rate


def measure_barrier(int num_workers, cpus, int count):
    """Seconds of a barrier of the team, from ``count`` of them."""
    cpu_array = None if cpus is None else np.array(cpus, np.int32)
    cdef int *cpu_list = NULL if cpus is None else <int *>address(cpu_array)
    cdef double seconds
    with nogil:
        seconds = c_measure_barrier(num_workers, cpu_list, count)
    if seconds < 0:
        raise MemoryError(f"no threads for {num_workers} workers")
    return seconds


def measure_read(level, int num_workers, cpus, int64_t size, int sweeps):
    """Seconds that the team takes to read ``size`` bytes ``sweeps`` times over."""
    cdef const KernelTable *kernels = kernels_of(level)
    cpu_array = None if cpus is None else np.array(cpus, np.int32)
    cdef int *cpu_list = NULL if cpus is None else <int *>address(cpu_array)
    cdef double seconds
    with nogil:
        seconds = c_measure_read(kernels, num_workers, cpu_list, size, sweeps)
    if seconds < 0:
        raise MemoryError(f"no memory or threads to read {size} bytes with {num_workers} workers")
    return seconds


def pack_strips(level, int format, const float[:, ::1] weights, uint8_t[:, ::1] strips):
    """Pack weights [n, k] into strips [ceil(n / 16), strip_bytes] of a quantised format; whether all are finite."""
    cdef const KernelTable *kernels = kernels_of(level)
    cdef int32_t n = weights.shape[0], k = weights.shape[1], strip
    cdef int is_finite = 1
    with nogil:
        for strip in range(<int32_t>strips.shape[0]):
            is_finite &= kernels.pack[format](
                &weights[strip * TILE_N, 0], min(TILE_N, n - strip * TILE_N), k, &strips[strip, 0])
    return bool(is_finite)


cdef void *address(array):
    """Where a numpy array's data lies; the caller keeps the array."""
    return <void *><uintptr_t>array.ctypes.data


@cython.no_gc_clear  # __dealloc__ needs the list of arenas
cdef class Core:
    """The C executor and its memory. ``close`` releases both; what runs raises RuntimeError after it."""

    cdef Executor *e
    cdef list arenas  # (address, bytes)
    cdef dict kept  # arrays that C points into
    cdef bint is_open
    cdef int process

    def __cinit__(self):
        self.arenas = []
        self.kept = {}
        self.is_open = False

    def __init__(self, level, dims, limits, tensors, shares, arena_bytes, swept_bytes, cpus, sequences, entries, buffers,
                 act_rows, kv_format, kv_tile):
        """``tensors``: (n, k, format, is_table, strip_bytes) each; ``buffers``: float32 [rows, stride]
        arrays in Buffer's order; ``act_rows``: (codes int8, scales float32, sums int32) arrays of the shared ACT, and
        the same of each worker after (x float32); ``kv_tile``: bytes of a KV tile in ``kv_format``."""
        cdef Executor *e = <Executor *>self.keep("executor", aligned_zeros(sizeof(Executor), np.uint8))
        cdef int w
        self.e, self.process = e, getpid()
        e.kernels = kernels_of(level)
        (e.dims.hidden, e.dims.layers, e.dims.heads, e.dims.kv_heads, e.dims.head_dim, e.dims.ffn, e.dims.vocab) = dims
        e.kv_format, e.kv_tile = kv_format, kv_tile
        (e.limits.max_num_seqs, e.limits.max_model_len, e.limits.max_num_batched_tokens, e.limits.max_num_logits,
         e.limits.num_kv_blocks, e.limits.max_blocks_per_seq) = limits
        e.num_workers = len(arena_bytes)
        e.tensors = <Tensor *>calloc(len(tensors), sizeof(Tensor))
        e.workers = <Worker *>calloc(e.num_workers, sizeof(Worker))
        if e.tensors == NULL or e.workers == NULL:
            raise MemoryError("no memory for the executor's tables")
        cdef int64_t largest_k = 1
        for i, fields in enumerate(tensors):
            (e.tensors[i].n, e.tensors[i].k, e.tensors[i].format, e.tensors[i].is_table, e.tensors[i].strip_bytes) = fields
            largest_k = max(largest_k, e.tensors[i].k)
        e.shares = <const Share *>self.keep("shares", shares)
        for i, array in enumerate(buffers):
            e.buffers[i] = <float *>self.keep(f"buffer {i}", array)
            e.strides[i] = array.shape[1]
        self.set_activations(&e.act, buffers[BUFFER_ACT], act_rows[0], largest_k, "act")
        for w in range(e.num_workers):
            self.set_activations(&e.workers[w].act, act_rows[w + 1][3], act_rows[w + 1][:3], largest_k, f"act {w}")
            self.set_scratch(&e.workers[w].sample, w)
            largest = np.zeros(max(1, e.limits.max_num_logits) * sizeof(Largest), np.uint8)
            e.workers[w].largest = <Largest *>self.keep(f"largest {w}", largest)
            attention = aligned_zeros(attend_scratch_floats(e.dims.head_dim), np.float32)
            e.workers[w].attention = <float *>self.keep(f"attention {w}", attention)
            e.workers[w].swept_bytes = swept_bytes[w]
            e.workers[w].fetch = choose_fetch(swept_bytes[w], sum(swept_bytes))
            e.workers[w].arena = <uint8_t *>self.arena(arena_bytes[w])
            scratch = aligned_zeros(scratch_bytes(e.limits.max_num_batched_tokens, largest_k), np.uint8)
            e.workers[w].scratch = <uint8_t *>self.keep(f"scratch {w}", scratch)
        e.kv = <uint8_t *>self.arena(e.kv_tile * e.dims.layers * e.limits.num_kv_blocks * e.dims.kv_heads)
        self.set_sequences(sequences)
        e.rows = <Row *>self.keep("rows", np.zeros(e.limits.max_num_batched_tokens * sizeof(Row), np.uint8))
        e.wanted = <int32_t *>self.keep("wanted", np.zeros(max(1, e.limits.max_num_logits), np.int32))
        e.spans = <Span *>self.keep("spans", np.zeros(e.limits.max_num_seqs * sizeof(Span), np.uint8))
        e.ring.entries = <Entry *>self.keep("entries", entries)
        e.ring.capacity = len(entries)
        gate_init(&e.ring.published)
        cpu_array = None if cpus is None else np.array(cpus, np.int32)
        e.team = team_create(e.num_workers, NULL if cpus is None else <int *>address(cpu_array))
        if e.team == NULL:
            raise RuntimeError(f"threads: {e.num_workers}, but the system grants fewer")
        e.ring.has_own_cpu = team_leaves_cpu(e.team)
        self.is_open = True

    cdef void *keep(self, name, array):
        self.kept[name] = array
        return address(array)

    cdef void *arena(self, int64_t size) except NULL:
        cdef void *memory = arena_create(size)
        if memory == NULL:
            raise MemoryError(f"no memory for an arena of {size} bytes")
        self.arenas.append((<uintptr_t>memory, size))
        return memory

    cdef void set_activations(self, Activations *act, x, quantized, int64_t largest_k, name):
        codes, scales, sums = quantized
        act.x = <float *>self.keep(f"{name} x", x)
        act.quantized.codes = <signed char *>self.keep(f"{name} codes", codes)
        act.quantized.scales = <float *>self.keep(f"{name} scales", scales)
        act.quantized.sums = <int32_t *>self.keep(f"{name} sums", sums)
        act.quantized.codes_stride = codes.shape[1]
        act.quantized.groups_stride = scales.shape[1]
        if self.e.kernels.split != NULL:
            halves = aligned_zeros(split_bytes(len(x), largest_k), np.uint8)
            act.halves = <uint8_t *>self.keep(f"{name} halves", halves)

    cdef void set_scratch(self, SampleScratch *scratch, int worker):
        padded = self.e.dims.vocab + 16
        scratch.logits = <float *>self.keep(f"scratch logits {worker}", aligned_zeros(padded, np.float32))
        scratch.weights = <float *>self.keep(f"scratch weights {worker}", aligned_zeros(padded, np.float32))
        scratch.ids = <int32_t *>self.keep(f"scratch ids {worker}", aligned_zeros(padded, np.int32))
        scratch.counts = <int32_t *>self.keep(f"scratch counts {worker}", aligned_zeros(padded, np.int32))

    cdef void set_sequences(self, table):
        cdef Sequences *s = &self.e.sequences
        s.tokens = <int32_t *>self.keep("tokens", table.tokens)
        s.num_tokens = <int32_t *>self.keep("num_tokens", table.num_tokens)
        s.block_tables = <int32_t *>self.keep("block_tables", table.block_tables)
        s.num_blocks = <int32_t *>self.keep("num_blocks", table.num_blocks)
        s.sampling = <Sampling *>self.keep("sampling", table.sampling)
        s.constraints = <Constraints *>self.keep("constraints", table.constraints)
        s.allowed_ids = <uint32_t *>self.keep("allowed_ids", table.allowed_ids)
        s.mask_words = table.allowed_ids.shape[1]
        s.stop_flags = <int32_t *>self.keep("stop_flags", table.stop_flags)
        s.wake = <int32_t *>self.keep("wake", table.wake)

    cdef int check_open(self) except -1:
        if not self.is_open:
            raise RuntimeError("the executor is closed")
        if getpid() != self.process:
            raise RuntimeError(f"the executor is process {self.process}'s: after a fork, make another one")
        return 0

    def load_table(self, int tensor, padded):
        """Point tensor at its rows: float32 [n, stride], padded with zeros to whole vectors."""
        self.check_open()
        self.e.tensors[tensor].table = <const float *>self.keep(f"table {tensor}", padded)
        self.e.tensors[tensor].table_stride = padded.shape[1]

    def load_strips(self, int tensor, const uint8_t[:, ::1] strips):
        """Have each worker copy its strips (of uint8 [num_strips, strip_bytes]) into its arena, whose pages it so touches
        first."""
        cdef StripsToLoad load
        self.check_open()
        load.executor, load.tensor, load.strips = self.e, tensor, &strips[0, 0]
        with nogil:
            team_run(self.e.team, load_share, &load)

    def attach(self):
        self.check_open()
        team_attach(self.e.team)

    def read_seconds(self, int sweeps):
        """Seconds that the team takes to read the weights that steps sweep, ``sweeps`` times over."""
        cdef double seconds
        self.check_open()
        with nogil:
            seconds = measure_weights_read(self.e, sweeps)
        return seconds

    def run(self, instructions, spans, int max_steps, profile):
        """-> (num_steps, reason, bad_slot, nanoseconds). The arrays are contiguous; ``profile`` is int64 or None."""
        cdef Outcome outcome
        self.check_open()
        self.e.instructions = <const Instruction *>self.keep("instructions", instructions)
        self.e.num_instructions = len(instructions)
        self.e.profile = NULL if profile is None else <int64_t *>self.keep("profile", profile)
        self.e.num_spans = len(spans)
        memcpy(self.e.spans, address(spans), spans.nbytes)
        with nogil:
            outcome = executor_run(self.e, max_steps)
        return outcome.num_steps, outcome.reason, outcome.bad_slot, outcome.nanoseconds

    def ring_waiting(self):
        return ring_waiting(&self.e.ring)

    def ring_wait(self, double timeout):
        cdef int64_t nanoseconds = <int64_t>(min(max(timeout, 0.0), 1e9) * 1e9)
        with nogil:
            ring_wait(&self.e.ring, nanoseconds)
        return ring_waiting(&self.e.ring) > 0

    def ring_drain(self):
        cdef Ring *ring = &self.e.ring
        cdef int64_t head = ring.head, capacity = ring.capacity
        cdef int64_t first = ring.tail % capacity, end = first + head - ring.tail
        entries = self.kept["entries"]
        drained = entries[first : min(end, capacity)].copy()
        if end > capacity:
            drained = np.concatenate((drained, entries[: end - capacity]))
        ring.tail = head
        return drained

    def close(self):
        cdef Executor *e = self.e
        if self.is_open:
            self.is_open = False
            if getpid() == self.process:  # a forked child has no workers to wait for, and would
                with nogil:
                    team_destroy(e.team)
                    gate_destroy(&e.ring.published)
        for memory, size in self.arenas:
            arena_destroy(<void *><uintptr_t>memory, size)
        self.arenas = []
        if e != NULL:
            free(e.tensors)
            free(e.workers)
            e.tensors = NULL
            e.workers = NULL

    def __dealloc__(self):
        self.close()


cdef void load_share(void *context, int worker) noexcept nogil:
    cdef StripsToLoad *load = <StripsToLoad *>context
    cdef Executor *e = load.executor
    cdef const Share *share = &e.shares[load.tensor * e.num_workers + worker]
    cdef int64_t size = e.tensors[load.tensor].strip_bytes
    memcpy(e.workers[worker].arena + share.offset, load.strips + share.first * size, share.count * size)
