"""The limits of a real device, as ``octavo bench`` measures them."""

from __future__ import annotations

import json

import pytest
import torch

from octavo.cli import main


def test_the_bench_measures_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--device", "cuda", "--json", "-q", "-c", "4", "--output-tokens", "32"])
    assert not ended.value.code
    report = json.loads(capsys.readouterr().out)
    assert report["roofline"]["gpu"] == torch.cuda.get_device_name()
    assert report["roofline"]["bytes_per_second"] > 5e10  # no GPU that Triton compiles for reads more slowly
    assert report["roofline"]["flops_per_second"] > 0
    for stream in report["streams"]:
        assert min(stream["decode"]) > 0
