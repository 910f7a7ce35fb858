"""The training script, end to end at toy size: train, export, load with transformers, measure."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "tools" / "train_tales.py"
TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def tales() -> ModuleType:
    """The script as a module."""
    pytest.importorskip("rich")
    spec = importlib.util.spec_from_file_location("train_tales", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def corpus(tales_count: int = 60) -> str:
    """Little tales, each different, of about 400 characters."""
    animals = ("fox", "wolf", "hen", "king", "miller", "goose", "witch")
    texts = []
    for number in range(tales_count):
        hero, other = animals[number % 7], animals[(number * 3 + 1) % 7]
        opening = f"Once upon a time there was a {hero} who had {number} sons and one very old {other}."
        middle = f'"Good day," said the {other}, "where are you going with your {number} sons?"'
        texts.append("\n\n".join([opening, middle, f"And the {hero} walked {number * 7} miles. " * 8]))
    return "\n\n".join(texts)


@pytest.fixture(scope="module")
def passages(tales: ModuleType) -> list:
    """The toy corpus in passages."""
    return tales.split_passages(corpus(), shortest=100)


@pytest.fixture(scope="module")
def folder(tales: ModuleType, passages: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model, trained a few steps, stopped, resumed, and exported."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("tales")
    size = tales.ModelSize(**TINY)
    tokenizer = tales.train_tokenizer(passages, size.vocab_size)
    stream, _ = tales.encode_stream(tokenizer, passages)
    for minutes in (0.02, 0.06):
        recipe = tales.Recipe(minutes=minutes, batch_tokens=128, sequence=32)
        model = tales.TalesModel(size)
        model.initialise()
        trainer = tales.Trainer(model, stream, recipe, torch.device("cpu"), compiled=False)
        if (out / "run.pt").exists():
            trainer.resume(out / "run.pt")
            assert trainer.state.step > 0
        trainer.run(out / "run.pt")
    assert trainer.state.seconds >= 1.2
    tales.export(model, tokenizer, out)
    return out


def test_passages_are_tales(passages: list) -> None:
    assert len(passages) == 60
    assert all(passage.opens and passage.text.startswith("Once upon a time") for passage in passages)


def test_long_books_are_cut_without_end_of_text(tales: ModuleType) -> None:
    pieces = tales.split_passages("\n\n".join(["It rained all day on the sea."] * 50), longest=600)
    assert [piece.opens for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    stream, text_bytes = tales.encode_stream(tales.train_tokenizer(pieces, 260), pieces)
    assert (stream == 0).sum() == 2
    assert text_bytes == 50 * 29 + 49 * 2


def test_held_out_tales_are_not_trained_on(tales: ModuleType, passages: list) -> None:
    twin = tales.Passage(passages[3].text.replace("Once upon a time", "Long ago"), True)
    for _ in range(2):
        training, held_out, dropped = tales.hold_out([twin, *passages], fraction=0.1, spans=4, overlap=0.5)
        assert len(held_out) >= 4
        assert not {passage.text for passage in training} & {passage.text for passage in held_out}
        assert len(training) + len(held_out) + dropped == 61
    training, held_out, dropped = tales.hold_out([*passages, *passages[:30]], fraction=0.1, spans=4, overlap=0.5)
    assert not {passage.text for passage in training} & {passage.text for passage in held_out}


def test_schedule_warms_up_stays_and_decays(tales: ModuleType) -> None:
    factors = [tales.rate_factor(progress, 0.1, 0.4) for progress in (0.0, 0.05, 0.1, 0.5, 0.8, 1.0)]
    assert factors == pytest.approx([0.02, 0.5, 1.0, 1.0, 0.5, 0.0])


def test_data_order_resumes(tales: ModuleType) -> None:
    stream, recipe = torch.arange(2_000), tales.Recipe(batch_tokens=128, sequence=32)
    state = tales.State()
    data = tales.batches(stream, recipe, state, 64)
    whole = [next(data) for _ in range(6)]
    middle = tales.State()
    data = tales.batches(stream, recipe, middle, 64)
    first = [next(data) for _ in range(3)]
    rest = tales.batches(stream, recipe, tales.State(**vars(middle)), 64)
    assert all(torch.equal(a, b) for a, b in zip(whole, [*first, *(next(rest) for _ in range(3))], strict=True))


def test_export_agrees_with_transformers(tales: ModuleType, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours, tokenizer = tales.load_folder(folder, torch.device("cpu"))
    ids = torch.tensor([tokenizer.encode("Once upon a time there was a goose").ids])
    assert ids[0, 0] == 0
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_tokenizer_keeps_every_byte(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "Es war einmal \u2014 \U0001f98a\u200d\U0001f525 na\u00efve\r\n\t  \x00 \u0645\u0631\u062d\u0628\u0627"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    chat = [{"role": "user", "content": "Once a fox"}, {"role": "assistant", "content": " slept."}]
    told = tokenizer.apply_chat_template([*chat, {"role": "user", "content": "Then"}], tokenize=False)
    assert told == "<|endoftext|>Once a fox slept.\n\nThen"


def test_bits_per_byte(tales: ModuleType, passages: list, folder: Path) -> None:
    bits, stream, text_bytes = tales.measure(folder, passages, torch.device("cpu"))
    assert len(stream) > 4 * TINY["max_position_embeddings"]
    untrained = math.log2(TINY["vocab_size"]) * len(stream) / text_bytes
    assert 0 < bits < 0.95 * untrained
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"]


def test_every_token_is_counted_once(tales: ModuleType) -> None:
    """With even logits every token costs the same, whatever the windows."""
    model = tales.TalesModel(tales.ModelSize(**TINY))
    torch.nn.init.zeros_(model.embed_tokens.weight)
    for length in (2, 40, 65, 66, 96, 97, 98, 500):
        stream = torch.arange(length) % 300
        expected = (length - 1) * math.log2(300) / 1000
        assert tales.bits_per_byte(model, stream, 1000) == pytest.approx(expected)


def test_card_tells_what_was_measured(tales: ModuleType) -> None:
    state = tales.State(step=10, tokens=1_000, seconds=600.0, losses=[3.0])
    facts = tales.Facts(
        size=tales.ModelSize(),
        parameters=9_000_000,
        state=state,
        recipe=tales.Recipe(),
        hardware="a 2-core CPU",
        training_bytes=2_000,
        training_tokens=500,
        held_out_bytes=100,
        held_out_tokens=25,
        dropped=2,
        bits=1.2345,
        samples=["Once upon a time"],
    )
    card = tales.model_card(facts)
    assert "**1.234**" in card or "**1.235**" in card
    assert "10 minutes on a 2-core CPU" in card
    assert "2.0 passes" in card
