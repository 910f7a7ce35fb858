"""A folder in Hugging Face layout that stands for a GGUF file.

config.json, the tokenizer's files and a table of the tensors are made once, from the file's header, and kept in the
user's cache; the weights stay where they are. The next start then reads no header, and everything that reads model
folders reads GGUF files too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from octavo.errors import ModelError, UnsupportedModelError
from octavo.gguf.header import Header
from octavo.gguf.settings import model_settings
from octavo.gguf.tensors import tensor_table
from octavo.gguf.tokenizer import tokenizer_files
from octavo.user_cache import user_cache_dir

TENSORS_FILE = "gguf_tensors.json"
"""The table of tensors in such a folder."""

_FORM = 1  # counted up whenever a folder's files come out otherwise than before


def unpacked(path: Path) -> Path:
    """The folder that stands for the file at ``path``, made if this file (by name, size and time) has none yet.

    Raises:
        UnsupportedModelError: the gguf package is missing, or the model is not one that Octavo knows.
        WeightsError: the file is damaged.
        ModelError: there is nowhere to keep the folder.
    """
    path = path.resolve()
    found = path.stat()
    key = hashlib.sha256(f"{_FORM} {path} {found.st_size} {found.st_mtime_ns}".encode()).hexdigest()[:16]
    home = user_cache_dir() / "gguf"
    folder = home / f"{path.stem}-{key}"
    if folder.is_dir():
        return folder
    files = _files(Header.read(path))
    try:
        home.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=home))
        try:
            for name, text in files.items():
                (making / name).write_text(text, encoding="utf-8")
            making.rename(folder)
        except OSError:
            shutil.rmtree(making, ignore_errors=True)
            if not folder.is_dir():  # another process may have been first
                raise
    except OSError as error:
        raise ModelError(
            f"what {path} says of its model cannot be kept in {home} ({error}): set OCTAVO_CACHE_DIR to a folder that "
            "can be written"
        ) from error
    return folder


def _files(header: Header) -> dict[str, str]:
    settings = model_settings(header)
    settings["quantization_config"] = {"quant_method": "gguf", "file": str(header.path)}
    files: dict[str, Any] = {"config.json": settings, TENSORS_FILE: tensor_table(header)}
    made = {}
    try:
        tokenizer, files["tokenizer_config.json"] = tokenizer_files(header)
        made["tokenizer.json"] = tokenizer.to_str()
    except UnsupportedModelError as error:  # another tokenizer may be asked for
        files["tokenizer_config.json"] = {"unreadable": str(error)}
    return made | {name: json.dumps(value, ensure_ascii=False) for name, value in files.items()}
