"""Waferline: a low-latency streaming token-generation engine for CPUs.

What is exported here is loaded when it is first used: a client never loads an engine.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .llm import LLM, AsyncLLM
    from .model.errors import ModelError
    from .runtime.errors import RequestFailed
    from .runtime.messages import Delta
    from .runtime.outputs import CompletionOutput, Logprob, RequestOutput
    from .runtime.sampling_params import SamplingParams
    from .serving.async_client import AsyncClient
    from .serving.client import Client

_MODULES = {
    "LLM": ".llm",
    "AsyncLLM": ".llm",
    "Client": ".serving.client",
    "AsyncClient": ".serving.async_client",
    "SamplingParams": ".runtime.sampling_params",
    "RequestOutput": ".runtime.outputs",
    "CompletionOutput": ".runtime.outputs",
    "Logprob": ".runtime.outputs",
    "Delta": ".runtime.messages",
    "RequestFailed": ".runtime.errors",
    "ModelError": ".model.errors",
}

__all__ = [
    "LLM",
    "AsyncClient",
    "AsyncLLM",
    "Client",
    "CompletionOutput",
    "Delta",
    "Logprob",
    "ModelError",
    "RequestFailed",
    "RequestOutput",
    "SamplingParams",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("waferline")
    elif name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name], __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
