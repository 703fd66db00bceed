"""The fast tests at three levels of instruction sets: is a tolerance one processor's? (make isa)

    python -m tests.isa [pytest's arguments; default: tests/causal_core]

Torch, MKL and oneDNN read their limit once, when they load, so each level is a process of its own.
On a processor without AVX-512 the first two are nearly the same, which the line of flags tells.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

LEVELS: dict[str, dict[str, str]] = {
    "the machine's own": {},
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "SSE4": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}
NOTABLE = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile")


def processor() -> str:
    """The processor's name and the instruction sets that make a difference here."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    fields = dict(
        (part.strip() for part in line.split(":", 1)) for line in text.splitlines() if ":" in line
    )
    flags = set(fields.get("flags", "").split())
    known = " ".join(name for name in NOTABLE if name in flags)
    return f"{fields.get('model name', platform.machine())} ({known})"


def main(arguments: list[str]) -> int:
    """Runs pytest at each level, one after the other; 1 where any level did not pass."""
    limiting = set().union(*LEVELS.values())
    unlimited = {k: v for k, v in os.environ.items() if k not in limiting}
    print(processor(), flush=True)
    passed = True
    for level, limits in LEVELS.items():
        begin = time.perf_counter()
        command = [sys.executable, "-m", "pytest", "-q", *(arguments or ["tests/causal_core"])]
        found = subprocess.run(
            command, env={**unlimited, **limits}, stdout=subprocess.PIPE, text=True, check=False
        )
        lines = found.stdout.splitlines()
        for line in lines:
            if line.startswith(("FAILED", "ERROR")):
                print(f"  {line}")
        summary = lines[-1] if lines else "it said nothing"
        print(f"{level:18} {summary} [{time.perf_counter() - begin:.0f} s]", flush=True)
        passed = passed and found.returncode == 0
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
