"""``octavo quantize``: what a user meets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0), *capsys.readouterr()


def test_a_model_is_written_and_generates_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tales-int8"
    code, printed, err = run(capsys, "quantize", "tales", str(out))
    assert (code, printed) == (0, "")
    assert "matrices in int8" in err
    texts = []
    for model in (["--model", str(out)], ["--quantization", "int8"]):
        more = ["--max-tokens", "8", "--temperature", "0", "--kernels", "reference", "--num-blocks", "64", "--json"]
        code, printed, _ = run(capsys, "generate", "Once upon a time", *model, *more)
        assert code == 0
        texts.append(json.loads(printed)["token_ids"])
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tales", "OUT", "--quantization", "int3"], "quantization"),
        (["nowhere/to be found", "OUT"], "nowhere"),
        (["tales", "TAKEN"], "is there already"),
    ],
)
def test_mistakes_are_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "TAKEN").write_text("as it was")
    given = [str(tmp_path / word) if word in ("OUT", "TAKEN") else word for word in arguments]
    code, printed, err = run(capsys, "quantize", *given)
    assert (code, printed) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["TAKEN"]
