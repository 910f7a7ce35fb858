"""Every format is read, and every kind of nonsense is refused with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import ConfigError, TraceError
from octavo.simulator.trace import TraceRequest
from octavo.simulator.trace_reader import read_trace

MOONCAKE = """\
{"timestamp": 500, "input_length": 700, "output_length": 3, "hash_ids": [90, 7]}

{"timestamp": 1500, "input_length": 1025, "output_length": 0, "hash_ids": [90, 8, 9], "priority": -1, "user": "ann"}
{"timestamp": 1500.5, "input_length": 4, "output_length": 2}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,0
"""


@pytest.mark.parametrize("zipped", [False, True])
def test_mooncake(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "any.name"
    path.write_bytes(gzip.compress(MOONCAKE.encode()) if zipped else MOONCAKE.encode())
    trace = read_trace(path)
    assert (trace.format, trace.piece, trace.num_contents, trace.longest) == ("mooncake", 512, 4, 1026)
    assert trace.requests == (
        TraceRequest(0.0, 700, 3, (0, 1)),
        TraceRequest(1.0, 1025, 0, (0, 2, 3), priority=-1, user="ann"),
        TraceRequest(1.0005, 4, 2),
    )


@pytest.mark.parametrize("zipped", [False, True])
def test_azure(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "any.name"
    text = "\ufeff" + AZURE.replace("\n", "\r\n")  # as spreadsheets leave it
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    trace = read_trace(path)
    assert (trace.format, trace.num_contents) == ("azure", 0)
    assert [(r.num_prompt, r.num_output) for r in trace.requests] == [(4808, 10), (3180, 0)]
    assert trace.seconds == pytest.approx(0.052)


def test_columns_in_any_order_beside_others(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("GeneratedTokens, Model ,ContextTokens,TIMESTAMP\n5,x,9,2024-05-10 00:00:00.009930+00:00\n")
    assert read_trace(path).requests == (TraceRequest(0.0, 9, 5),)


GOOD = '{"timestamp": 10, "input_length": 600, "output_length": 3, "hash_ids": [1, 2]}\n'


def row(**changes: object) -> str:
    return json.dumps({"timestamp": 20, "input_length": 600, "output_length": 3, "hash_ids": [1, 2], **changes})


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "an object is expected"),
        ("[" * 100_000, "not JSON"),
        ('{"timestamp": 20}', "input_length, output_length missing"),
        (row(timestamp="soon"), "timestamp must be a number of milliseconds, not 'soon'"),
        (row(timestamp=True), "timestamp must be a number"),
        (row(timestamp=float("inf")), "timestamp must be a number"),
        (row(timestamp=9), r"comes 0.001 s before the one above"),
        (row(input_length=-5), "input_length=-5 is out of range"),
        (row(input_length=0), "input_length=0 is out of range"),
        (row(input_length=1.5), "input_length must be a whole number, not 1.5"),
        (row(output_length=-1), "output_length=-1 is out of range"),
        (row(output_length=10**400), "output_length=1"),
        (row(hash_ids=[1]), r"1 hash_ids for a prompt of 600 tokens: at 512 tokens an id there must be 2"),
        (row(hash_ids=[1, "2"]), "must be a list of whole numbers"),
        (row(hash_ids={"1": 2}), "must be a list of whole numbers"),
        (row(hash_ids=[3, 2]), "hash id 2 follows another id than it did above"),
        (row(hash_ids=[2, 3]), "hash id 2 follows another id than it did above"),
        (row(priority="high"), "priority must be a whole number"),
        (row(user=3), "user must be a string"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(tmp_path: Path, second: str, says: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(GOOD + "\n" + second + "\n")
    with pytest.raises(TraceError, match=rf"t\.jsonl, line 3: .*{says}"):
        read_trace(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: the file is empty"),
        ("\n \n", "line 1: the file is empty"),
        ("[{}]", "line 1: a JSON array"),
        ("hello\n", "line 1: neither an object nor a header"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "line 1: column GeneratedTokens missing"),
        (AZURE.split("\n")[0], "line 1: the header is all there is"),
        (AZURE + "2023-11-16 18:17:05\n", "line 4: 1 columns where the header has 3"),
        (AZURE + "yesterday,1,2\n", "line 4: TIMESTAMP 'yesterday' is not a date"),
        (AZURE + "2023-11-16 18:17:05,1,-2\n", "line 4: GeneratedTokens=-2 is out of range"),
        (AZURE + "2023-11-16 18:17:05,many,2\n", "line 4: ContextTokens must be a whole number, not 'many'"),
        (AZURE + "2023-11-16 18:17:03,1,2\n", "line 4: the request comes 1.03196 s before"),
        (AZURE + "2023-11-16 18:17:05+00:00,1,2\n", "line 4: TIMESTAMP .* time zone"),
        (AZURE + '"' + "x" * 140_000 + '",1,2\n', "line 4: not CSV"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "t"
    path.write_text(text)
    with pytest.raises(TraceError, match=says):
        read_trace(path)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        read_trace(tmp_path / "nowhere")
    with pytest.raises(TraceError, match="cannot be read: Is a directory"):
        read_trace(tmp_path)
    whole = gzip.compress(MOONCAKE.encode())
    for content, says in [
        (whole[:-20], "cannot be unzipped"),
        (whole[:4] + b"\xff" * 40, "cannot be"),
        (b"{}\n\xff\n", "line 2: not text in UTF-8"),
    ]:
        path = tmp_path / "broken"
        path.write_bytes(content)
        with pytest.raises(TraceError, match=says):
            read_trace(path)


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:0123456789-timestamp\n', max_size=80).map(str.encode))
def test_nothing_but_a_trace_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "t"
    path.write_bytes(content)
    with pytest.raises(TraceError):
        read_trace(path)


def test_a_trace_is_cut_and_stretched(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(MOONCAKE)
    trace = read_trace(path)
    assert trace.first(2).requests == trace.requests[:2]
    assert [r.arrival for r in trace.stretched(2).requests] == [0.0, 2.0, 2.001]
    assert trace.stretched(0).seconds == 0.0
    assert trace.at_rate(4).seconds == pytest.approx(0.5)
    for call, says in [
        (lambda: trace.first(0), "limit=0"),
        (lambda: trace.stretched(-1), "time_scale=-1"),
        (lambda: trace.stretched(float("nan")), "time_scale=nan"),
        (lambda: trace.at_rate(0), "rate=0"),
        (lambda: trace.stretched(0).at_rate(1), "same moment"),
        (lambda: read_trace(path, piece=0), "piece=0"),
    ]:
        with pytest.raises(ConfigError, match=says):
            call()
    assert read_trace(path, piece=512) == trace
    with pytest.raises(TraceError, match=r"line 1: 2 hash_ids .* at 256 tokens an id there must be 3"):
        read_trace(path, piece=256)
