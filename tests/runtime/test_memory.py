from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from waferline import LLM, SamplingParams
from waferline.runtime.memory import available_memory, choose_kv_dtype, plan_kv_blocks
from waferline_kernels.kv_cache import KV_FORMATS
from waferline_kernels.program import Dims

GIB = 1 << 30
SMOLLM = Dims(hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, ffn=1536, vocab=49152)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {
    "proc/meminfo": f"MemTotal: {64 * GIB // 1024} kB\nMemAvailable:  {32 * GIB // 1024} kB\nHugePages_Total: 0\n"
}


def test_without_cgroups_what_the_system_has_available(tmp_path: Path) -> None:
    assert available_memory(write(tmp_path, MEMINFO)) == 32 * GIB


def test_a_v2_cgroup_limit_counts_with_reclaimable_cache_given_back(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/system.slice/engine\n",
        "sys/fs/cgroup/system.slice/engine/memory.max": "max\n",
        "sys/fs/cgroup/system.slice/engine/memory.current": "100\n",
        "sys/fs/cgroup/system.slice/memory.max": f"{8 * GIB}\n",
        "sys/fs/cgroup/system.slice/memory.current": f"{5 * GIB}\n",
        "sys/fs/cgroup/system.slice/memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
    }
    assert available_memory(write(tmp_path, MEMINFO | files)) == 5 * GIB


def test_a_v1_cgroup_limit_counts_where_only_the_mount_is_visible(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/0123\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{4 * GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{1 * GIB}\n",
    }
    assert available_memory(write(tmp_path, MEMINFO | files)) == 3 * GIB


def test_what_is_overdrawn_leaves_nothing(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "1000\n",
        "sys/fs/cgroup/memory.current": "2000\n",
    }
    assert available_memory(write(tmp_path, MEMINFO | files)) == 0


def test_this_system_tells_something() -> None:
    assert available_memory() > 0


def test_blocks_follow_from_the_budget_and_never_exceed_what_can_be_used() -> None:
    assert [SMOLLM.kv_block_bytes(format) for format in KV_FORMATS.values()] == [737_280, 368_640, 195_840]
    assert plan_kv_blocks(SMOLLM, "f32", 64, 8192, GIB, free_memory=0) == 1456
    assert plan_kv_blocks(SMOLLM, "bf16", 64, 8192, None, free_memory=2 * GIB) == 2912
    assert plan_kv_blocks(SMOLLM, "int8", 64, 8192, GIB, free_memory=0) == 5482
    assert plan_kv_blocks(SMOLLM, "bf16", 2, 100, GIB, free_memory=0) == 14


@pytest.mark.parametrize(
    ("budget", "error", "message"),
    [
        (737_279, ValueError, "kv_cache_memory: 737279 bytes, expected at least 737280, one block of 16 tokens"),
        (-1, ValueError, "kv_cache_memory: -1 bytes, expected at least 737280"),
        (None, ValueError, r"kv_cache_memory: 50 bytes \(half of the free memory\), expected at least 737280"),
        ("1G", TypeError, "kv_cache_memory: '1G', expected a number of bytes or None"),
    ],
)
def test_a_budget_that_holds_nothing_is_refused(budget: int | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plan_kv_blocks(SMOLLM, "f32", 16, 1024, budget, free_memory=100)


def test_the_kv_dtype_is_checked() -> None:
    assert [choose_kv_dtype("auto", dtype) for dtype in ("f32", "bf16", "q8", "q4")] == ["f32", "bf16", "bf16", "bf16"]
    assert choose_kv_dtype("int8", "f32") == "int8"
    with pytest.raises(ValueError, match="kv_dtype: 'fp8', expected one of auto, f32, bf16, int8"):
        choose_kv_dtype("fp8", "q8")


def test_angles_are_made_for_the_context_in_force_alone(fixtures_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(fixtures_dir / "tied", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 2**31 - 1}
    (folder / "config.json").write_text(json.dumps(config))
    with LLM(folder, kv_cache_memory=1 << 20) as llm:
        assert llm.stats()["model_bytes"] < 1 << 20
        [output] = llm.generate("Hello", SamplingParams(max_tokens=3, ignore_eos=True))
        assert len(output.outputs[0].token_ids) == 3
