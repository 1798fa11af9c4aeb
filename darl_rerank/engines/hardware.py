"""What this machine's processors can do, as far as it decides a number format."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets of the CPU as Linux names them; empty where they can't be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())


def cpu_has_bfloat16() -> bool:
    """Whether bfloat16 products run in hardware (AMX or AVX-512 BF16); without, they are slower than float32."""
    return bool(cpu_flags() & {"amx_bf16", "avx512_bf16"})
