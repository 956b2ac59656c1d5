"""The engines and the variants of each that are measured: of the settings tried on a CPU (each peer's file has them) the
fastest; transformers runs eagerly, as it does unless it is told to compile."""

from __future__ import annotations

PEERS = {
    "waferline": ("q8", "q4", "bf16"),
    "llama_cpp": ("Q8_0", "Q4_0"),
    "openvino": ("int8-f32", "int8-bf16", "int4-f32", "int4-bf16"),
    "onnxruntime": ("int8", "int4"),
    "ctranslate2": ("int8",),
    "transformers": ("bf16", "f32"),
}
"""Engine -> variants. ``benches.peers.<engine>_peer`` has its ``prepare(setup) -> Runner``."""

EXACT_VARIANTS = {
    "waferline": "f32",
    "llama_cpp": "F32",
    "openvino": "f32-f32",
    "onnxruntime": "fp32",
    "ctranslate2": "float32",
    "transformers": "f32",
}
"""Engine -> the variant without quantisation, whose greedy tokens should be everyone's."""
