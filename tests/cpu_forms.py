"""The forms that a product of bytes takes on different CPUs, each in a process that is told of such a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

from octavo.kernels.cpu.jit import host_features

_NARROW = "+avx,+avx2,+avxvnni,+fma,+f16c,+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+bmi,+bmi2,+64bit,+cmov"


def outcomes(script: str) -> list[str]:
    """What ``script`` makes of every form that this CPU can run. It must print whether tiles, whether wide and whether
    narrow vectors of bytes are at hand, and then what it made.

    Raises:
        AssertionError: a process was told of another CPU and took no notice.
    """
    everything = ",".join(f"+{name}" for name in sorted(host_features()) if not name.startswith("amx"))
    told = [({}, None), ({"NUMBA_CPU_FEATURES": everything}, ["False", "True"])]
    if "avxvnni" in host_features():
        told.append(
            ({"NUMBA_CPU_NAME": "alderlake", "NUMBA_CPU_FEATURES": _NARROW}, ["False", "False", "True"]),
        )
    plain = _NARROW.replace("+avxvnni,", "")
    told.append(({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": plain}, ["False", "False", "False"]))
    made = []
    for environment, expected in told:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
        *form, outcome = done.stdout.split()
        assert expected is None or form[: len(expected)] == expected
        made.append(outcome)
    return made
