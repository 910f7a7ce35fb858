"""How a benchmark talks to an engine that runs in a process, and maybe a Python, of its own.

The driver starts ``python engines/NAME.py MODEL_FOLDER OPTIONS_JSON``. The engine loads, prints a line of JSON
``{"ready": ..., "versions": ...}``, then answers each line on stdin (a workload) with one on stdout (what it took).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(
    load: Callable[[str, dict[str, Any]], tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, str]]],
) -> None:
    """Load the engine and answer workloads until stdin closes. Whatever the engine prints itself goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    began = time.perf_counter()
    run, versions = load(sys.argv[1], json.loads(sys.argv[2]))
    print(json.dumps({"ready": time.perf_counter() - began, "versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        workload = json.loads(line)
        began = time.perf_counter()
        report = run(workload)
        print(json.dumps({"seconds": time.perf_counter() - began, **report}), file=answers, flush=True)
