from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from octavo import hub
from octavo.errors import ConfigError, ModelError, ModelNotFoundError


def write(folder: Path, name: str, value: Any) -> Path:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def test_a_folder_is_itself(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {})
    assert hub.resolve_model(str(tmp_path)) == tmp_path


def test_no_model_means_the_bundled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "bundled_model", lambda: tmp_path)
    with pytest.raises(ModelNotFoundError, match="bundled model is missing"):
        hub.resolve_model(None)
    write(tmp_path, "config.json", {})
    assert hub.resolve_model(None) == hub.resolve_model("tales") == tmp_path


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json") as caught:
        hub.resolve_model(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    write(tmp_path, "model.safetensors", "")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        hub.resolve_model(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "a b", "one/two/three"])
def test_what_is_neither_folder_nor_hub_id_is_refused_without_the_network(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="no folder"):
        hub.resolve_model(name)


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {})
    with pytest.raises(ConfigError, match="revision"):
        hub.resolve_model(str(tmp_path), revision="main")
    with pytest.raises(ConfigError, match="revision"):
        hub.resolve_model(None, revision="main")


def _errors() -> list[tuple[Exception, str]]:
    from huggingface_hub import errors

    response: Any = SimpleNamespace(headers={}, request=None, status_code=404, text="")
    return [
        (errors.GatedRepoError("gated", response=response), "hf auth login"),
        (errors.RepositoryNotFoundError("none", response=response), "check the spelling"),
        (errors.RevisionNotFoundError("none", response=response), "revision 'v2'"),
        (errors.LocalEntryNotFoundError("offline"), "HF_HUB_OFFLINE"),
        (errors.HfHubHTTPError("500", response=response), "refused"),
        (OSError("disk full"), "disk full"),
    ]


@pytest.mark.parametrize("index", range(6))
def test_each_failure_of_the_hub_says_what_to_do(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    error, sentence = _errors()[index]

    def fail(*args: Any, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelNotFoundError, match=sentence) as caught:
        hub.resolve_model("someone/some-model", revision="v2")
    assert "someone/some-model" in str(caught.value)


def test_the_hub_is_asked_for_safe_files_of_one_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}
    reports: list[tuple[str, int, int]] = []

    def download(model: str, **options: Any) -> str:
        asked.update(options, model=model)
        with options["tqdm_class"](total=10, unit="B", mininterval=0) as bar:
            bar.update(10)
        return str(write(tmp_path, "config.json", {}))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = hub.resolve_model("org/name", "abc", lambda *report: reports.append(report))
    assert folder == tmp_path
    assert (asked["model"], asked["revision"]) == ("org/name", "abc")
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any("bin" in pattern or pattern.endswith(".py") for pattern in asked["allow_patterns"])
    assert reports
    assert reports[-1] == ("fetching org/name", 10, 10)


def test_without_a_terminal_no_bar_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    def download(model: str, **options: Any) -> str:
        with options["tqdm_class"](total=10, unit="B", mininterval=0) as bar:
            bar.update(10)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        hub.resolve_model("org/name")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", "not valid JSON.*line 1"), ("[]", "one JSON object"), (b"\xff\xfe\x00", "cannot be read")],
)
def test_broken_json_names_the_file(tmp_path: Path, text: str | bytes, sentence: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError, match=sentence) as caught:
        hub.read_json(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
        hub.read_json(tmp_path / "config.json")


def test_generation_defaults(tmp_path: Path) -> None:
    assert hub.generation_defaults(tmp_path) == {}
    write(
        tmp_path,
        "generation_config.json",
        {"temperature": 0.7, "top_k": 20, "top_p": 1, "min_p": None, "do_sample": True, "eos_token_id": [5, 6], "x": 1},
    )
    assert hub.generation_defaults(tmp_path) == {
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 1.0,
        "do_sample": True,
        "eos_token_id": (5, 6),
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"),
        ("temperature", -1),
        ("top_p", 1.5),
        ("top_k", 2.5),
        ("do_sample", 1),
        ("repetition_penalty", True),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [1, -2]),
        ("max_new_tokens", 0),
    ],
)
def test_a_malformed_generation_config_names_file_and_field(tmp_path: Path, field: str, value: Any) -> None:
    write(tmp_path, "generation_config.json", {field: value})
    with pytest.raises(ModelError, match=rf"generation_config\.json: {field}"):
        hub.generation_defaults(tmp_path)


def test_not_a_number_in_a_generation_config_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "generation_config.json", '{"temperature": NaN}')
    with pytest.raises(ModelError, match="temperature"):
        hub.generation_defaults(tmp_path)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [(2, None, (2,)), ([2, 3], 2, (2, 3)), (2, [7, 2], (7, 2)), (None, None, ()), (None, 4, (4,))],
)
def test_the_ends_of_text_are_those_of_both_files(
    tmp_path: Path, config: Any, generation: Any, expected: tuple[int, ...]
) -> None:
    write(tmp_path, "config.json", {"eos_token_id": config})
    write(tmp_path, "generation_config.json", {"eos_token_id": generation})
    assert hub.eos_token_ids(tmp_path) == expected


def test_the_ends_of_text_of_a_model_with_eyes_may_lie_in_its_text_part(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"text_config": {"eos_token_id": [1, 106]}})
    assert hub.eos_token_ids(tmp_path) == (1, 106)
    write(tmp_path, "generation_config.json", {"eos_token_id": 106})
    assert hub.eos_token_ids(tmp_path) == (106, 1)
    write(tmp_path, "config.json", {"eos_token_id": 7, "text_config": {"eos_token_id": [1, 106]}})
    assert hub.eos_token_ids(tmp_path) == (106, 7)
    write(tmp_path, "config.json", {"text_config": {"eos_token_id": "<eos>"}})
    with pytest.raises(ModelError, match=r"text_config\.eos_token_id"):
        hub.eos_token_ids(tmp_path)


def test_the_hub_module_needs_no_heavy_library() -> None:
    import subprocess
    import sys

    heavy = ("torch", "transformers", "huggingface_hub", "numba")
    script = f"import sys, octavo.hub; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
