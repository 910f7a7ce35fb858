from pathlib import Path

from safetensors import safe_open


def test_a_checkpoint_is_made_once_and_has_what_a_model_folder_needs(checkpoint, tiny_llama: Path) -> None:
    assert checkpoint("llama") == tiny_llama
    names = {path.name for path in tiny_llama.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    with safe_open(tiny_llama / "model.safetensors", "pt") as file:
        assert "model.embed_tokens.weight" in file.keys()  # noqa: SIM118
