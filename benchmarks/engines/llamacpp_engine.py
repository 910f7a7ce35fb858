"""llama.cpp's own server, as a benchmark runs it: started beside, and asked through its HTTP interface."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from protocol import serve


def load(file: str, options: dict[str, Any]) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, str]]:
    binary, slots, threads = options["binary"], options["max_num_seqs"], str(options["num_threads"])
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    # One pool of cells for all slots: a slot may be as long as it needs to be.
    server = subprocess.Popen(
        [binary, "-m", file, "-t", threads, "-tb", threads, "-np", str(slots), "-c", str(options["kv_tokens"]),
         "--kv-unified", "-b", "2048", "--host", "127.0.0.1", "--port", str(port), "--cache-ram", "0",
         "--no-slots"],
        stdout=sys.stderr,
    )  # fmt: skip
    _wait(server, port)

    def ask(prompt: list[int], count: int) -> list[int]:
        body = {
            "prompt": prompt,
            "n_predict": count,
            "ignore_eos": True,
            "temperature": 0,
            "samplers": ["temperature"],
            "return_tokens": True,
        }
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"llama-server: {answer}")
        connection.close()
        return list(answer["tokens"])

    pool = ThreadPoolExecutor(256)

    def run(workload: dict[str, Any]) -> dict[str, Any]:
        outputs = list(pool.map(ask, workload["prompts"], workload["outputs"]))
        return {"tokens": sum(map(len, outputs)), "first": outputs[0][:8]}

    return run, {"llama.cpp": options["version"]}


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    """Until it has loaded the model."""
    while True:
        if server.poll() is not None:
            raise SystemExit("llama-server ended")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.02)


serve(load)
