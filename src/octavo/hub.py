"""Where a model's files are, and its small JSON files read with errors that name the file and the field.

Knows neither torch nor transformers; huggingface_hub is imported only when something must be fetched.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo.config import BUNDLED_MODEL
from octavo.errors import ConfigError, ModelError, ModelNotFoundError

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``: called now and then by whatever takes long; ``total`` is 0 while unknown."""

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"

FETCHED = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
"""What is fetched of a hub repository: no pickles, no code."""

_NOT_FETCHED = ("*/*", "consolidated*.safetensors")  # other copies of the same weights
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def bundled_model() -> Path:
    """The folder of the model that comes with the package (it may be missing from a broken installation)."""
    return Path(__file__).resolve().parent / "models" / BUNDLED_MODEL


def resolve_model(model: str | None, revision: str | None = None, progress: Progress | None = None) -> Path:
    """The local folder of a model, fetched from the hub where it must be.

    Args:
        model: None or "tales" for the bundled model; a folder in Hugging Face layout; a GGUF file, or a folder that
            holds one and no config.json; or a hub id. A folder of that name wins over a hub id.
        revision: branch, tag or commit, for every file fetched; only for hub ids.
        progress: called while fetching; without it a progress bar is drawn where stderr is a terminal.

    ``HF_HOME`` and ``HF_HUB_OFFLINE`` are honoured. Files in the cache are not fetched again.

    Raises:
        ModelNotFoundError: no such folder or hub id, the folder lacks config.json, or the hub cannot be reached and
            the cache has no copy.
        ConfigError: ``revision`` was given for a folder, which has none.
    """
    if model is None or model == BUNDLED_MODEL:
        folder = bundled_model()
        _refuse_revision(revision, "the bundled model")
        if not (folder / CONFIG_FILE).is_file():
            raise ModelNotFoundError(
                f"the bundled model is missing: {folder} has no {CONFIG_FILE}; reinstall octavo, or name a model"
            )
        return folder
    folder = Path(model).expanduser()
    if folder.is_dir():
        _refuse_revision(revision, f"the folder {folder}")
        if not (folder / CONFIG_FILE).is_file():
            files = sorted(folder.glob("*.gguf"))
            if len(files) == 1:
                return _stand_in(files[0])
            raise ModelNotFoundError(
                f"{folder} is not a model in Hugging Face layout: it has no {CONFIG_FILE}; name the folder that holds "
                f"{CONFIG_FILE}, tokenizer.json and the weights"
            )
        return folder
    if folder.is_file():
        if folder.suffix == ".gguf":
            _refuse_revision(revision, f"the file {folder}")
            return _stand_in(folder)
        raise ModelNotFoundError(
            f"{folder} is a file: name the folder that holds {CONFIG_FILE} and the weights, or a .gguf file"
        )
    if _HUB_ID.fullmatch(model) is None:
        raise ModelNotFoundError(f"there is no folder {folder}, and {model!r} is not a hub id (organisation/name)")
    return _fetch(model, revision, progress)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelNotFoundError: there is no such file.
        ModelError: the file cannot be read, or holds something else than one JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path.parent} has no {path.name}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise ModelError(f"{path} is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold one JSON object, not a {type(value).__name__}")
    return value


_GENERATION_FIELDS: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0.0, math.inf),
    "top_k": (int, -1, 2**31 - 1),
    "top_p": (float, 0.0, 1.0),
    "min_p": (float, 0.0, 1.0),
    "repetition_penalty": (float, 0.0, math.inf),
    "do_sample": (bool, 0, 1),
    "max_new_tokens": (int, 1, 2**31 - 1),
    "min_new_tokens": (int, 0, 2**31 - 1),
}


def generation_defaults(folder: Path) -> dict[str, Any]:
    """What the model's generation_config.json asks for, by the file's own names; fields that are absent or null are
    left out, and so are those Octavo has no use for. ``{}`` where there is no such file.

    The keys: temperature, top_k, top_p, min_p, repetition_penalty, do_sample, max_new_tokens, min_new_tokens, and
    ``eos_token_id`` as a tuple.

    Raises:
        ModelError: a field has the wrong type or is out of range; the message names file and field.
    """
    path = folder / GENERATION_FILE
    if not path.is_file():
        return {}
    given = read_json(path)
    found: dict[str, Any] = {}
    for name, (kind, low, high) in _GENERATION_FIELDS.items():
        value = given.get(name)
        if value is None:
            continue
        accepted = isinstance(value, bool) if kind is bool else _is_number(value, kind)
        if not accepted or not low <= value <= high:
            raise ModelError(f"{path}: {name}={value!r} is not {_expected(kind, low, high)}")
        found[name] = kind(value)
    if given.get("eos_token_id") is not None:
        found["eos_token_id"] = _token_ids(path, "eos_token_id", given["eos_token_id"])
    return found


def eos_token_ids(folder: Path) -> tuple[int, ...]:
    """The tokens that end a text: those of generation_config.json, then those only config.json names (a model with
    eyes may name them under ``text_config``).

    Raises:
        ModelError: one of the files is malformed.
    """
    path = folder / CONFIG_FILE
    ids = dict.fromkeys(generation_defaults(folder).get("eos_token_id", ()))
    config, name = read_json(path), "eos_token_id"
    value = config.get(name)
    if value is None and isinstance(config.get("text_config"), dict):
        value, name = config["text_config"].get(name), f"text_config.{name}"
    ids.update(dict.fromkeys(_token_ids(path, name, value)))
    return tuple(ids)


def _token_ids(path: Path, name: str, value: Any) -> tuple[int, ...]:
    items = value if isinstance(value, list) else [] if value is None else [value]
    for item in items:
        if not _is_number(item, int) or not 0 <= item < 2**31:
            raise ModelError(f"{path}: {name}={value!r} is not a token id or a list of them")
    return tuple(items)


def _is_number(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (kind is float and isinstance(value, float) and math.isfinite(value))


def _expected(kind: type, low: float, high: float) -> str:
    if kind is bool:
        return "true or false"
    noun = "an integer" if kind is int else "a number"
    return f"{noun} of at least {low:g}" if high in (math.inf, 2**31 - 1) else f"{noun} from {low:g} to {high:g}"


def _refuse_revision(revision: str | None, what: str) -> None:
    if revision is not None:
        raise ConfigError(f"revision={revision!r} is for hub ids; {what} has no revisions")


def _stand_in(path: Path) -> Path:
    """The folder that stands for a GGUF file."""
    from octavo.gguf import unpacked

    return unpacked(path)


def _fetch(model: str, revision: str | None, progress: Progress | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = f"{model!r}" if revision is None else f"{model!r} at revision {revision!r}"
    try:
        folder = Path(
            snapshot_download(
                model,
                revision=revision,
                allow_patterns=list(FETCHED),
                ignore_patterns=list(_NOT_FETCHED),
                tqdm_class=_bar(model, progress),
            )
        )
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{wanted} is gated: accept its terms on the hub, then run `hf auth login` or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"there is no folder and no hub model {wanted}: check the spelling, and set HF_TOKEN if it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(f"the hub has {model!r} but not its revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        raise ModelNotFoundError(
            f"there is no folder {model!r}, and the hub model {wanted} is not in the local cache and cannot be "
            "fetched: connect to the network (and unset HF_HUB_OFFLINE), or name a local folder"
        ) from error
    except HFValidationError as error:
        raise ModelNotFoundError(f"there is no folder {model!r}, nor is it a hub id: {error}") from error
    except HfHubHTTPError as error:
        raise ModelNotFoundError(f"the hub refused {wanted}: {error}") from error
    except OSError as error:
        raise ModelNotFoundError(
            f"{wanted} could not be fetched: {error}; connect to the network, or name a local folder"
        ) from error
    if not (folder / CONFIG_FILE).is_file():
        raise ModelNotFoundError(f"the hub model {wanted} has no {CONFIG_FILE}: it is not in Hugging Face layout")
    return folder


def _bar(model: str, progress: Progress | None) -> Any:
    """A tqdm class for the hub: silent without a terminal, or reporting to ``progress`` instead of drawing."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if progress is None and not sys.stderr.isatty():
                kwargs["disable"] = True
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

        def display(self, *args: Any, **kwargs: Any) -> Any:
            if progress is None:
                return super().display(*args, **kwargs)
            if self.unit == "B":
                progress(f"fetching {model}", int(self.n), int(self.total or 0))
            return True

    return Bar
