"""Stand-ins for the programs of the store demo: mooncake_master, mooncake_client, and a vLLM with its connector.

usage: fake_store.py master|node|vllm FOLDER FAULT [FLAGS as the real program gets them]

They agree through FOLDER: node/KEY is a block in the memory of the node, ssd/KEY one on its disk; what vLLM would
compute is the same each time. FAULT is one lie: the others tell the truth. Standard library only.
"""

import http.server
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

ROLE, FOLDER, FAULT = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
FLAGS = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[4:])
MEMORY, SSD = FOLDER / "node", FOLDER / "ssd"
BLOCK, BLOCK_BYTES = 128, 128 * 23040
TOKEN_IDS = [5, 6, 7]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


class Master:
    """Knows what the node has, unless it forgets everything when it starts a second time."""

    def __init__(self) -> None:
        lives = FOLDER / "lives-of-master"
        lives.write_text(lives.read_text() + "x" if lives.exists() else "x")
        self.is_forgetful = FAULT == "forgetful-master" and len(lives.read_text()) > 1

    def get(self, path: str, query: dict[str, list[str]]) -> str:
        held = set() if self.is_forgetful else names(MEMORY) | names(SSD)
        if path == "/get_all_keys":
            return "".join(f"{key}\n" for key in held)
        if path == "/get_all_segments":
            return "127.0.0.1:1\n" if (FOLDER / "joined").exists() else ""
        if path == "/batch_query_keys":
            on_ssd = set() if FAULT == "no-ssd" else names(SSD)
            data = {
                key: {"ok": key in held, "local_disk_values": [1] if key in on_ssd else None}
                for key in query["keys"][0].split(",")
            }
            return json.dumps({"success": True, "data": data})
        return ""


class Vllm:
    """One prompt of 300 tokens has two full blocks; what is shorter than one block is answered and forgotten."""

    def __init__(self) -> None:
        self.is_first = not (FOLDER / "computed").exists()
        (FOLDER / "computed").touch()
        self.hits = self.own_hits = 0
        self.seen: set[str] = set()

    def get(self, path: str, query: dict[str, list[str]]) -> str:
        return (
            'vllm:cache_config_info{block_size="128"} 1\n'
            f"vllm:external_prefix_cache_hits_total {self.hits}\n"
            f"vllm:prefix_cache_hits_total {self.own_hits}\n"
            f'vllm:mooncake_store_operation_time_seconds_sum{{operation="load_get",status="ok"}} {self.hits / 1e5}\n'
        )

    def post(self, body: dict) -> list[dict]:
        tokens = 300 if "long" in body["messages"][0]["content"] else 30
        keys = [f"m@{body['cache_salt']}-{index}" for index in range(tokens // BLOCK)]
        is_again = body["cache_salt"] in self.seen
        self.seen.add(body["cache_salt"])
        if is_again:
            self.own_hits += 0 if FAULT == "no-cache" else BLOCK * len(keys)
        elif keys and self.is_first:
            for key in keys[: 1 if FAULT == "lazy-put" else None]:
                (MEMORY / key).touch()
                (SSD / key).touch()
        elif keys:
            self.load(keys)
        wrong = FAULT == "other-tokens" and not self.is_first
        # As a processor may that computes a whole prompt otherwise than its end.
        rounded = 10 * (FAULT == "rounding" and (is_again or not self.is_first))
        choices = [{"delta": {"content": "word "}, "token_ids": [token + wrong + rounded]} for token in TOKEN_IDS]
        usage = {"choices": [], "usage": {"prompt_tokens": tokens}}
        return [*({"choices": [choice]} for choice in choices), usage]

    def load(self, keys: list[str]) -> None:
        in_memory = len(names(MEMORY) & set(keys))
        on_disk = len(keys) - in_memory
        self.hits += BLOCK * len(keys)
        by_tier = {"memory": in_memory * BLOCK_BYTES, "disk": on_disk * BLOCK_BYTES, "unknown": 0}
        print(
            f"1.5 INFO [x] Mooncake load tier summary: req_id=x batch_keys={len(keys)} memory_keys={in_memory} "
            f"disk_keys={on_disk} unknown_keys=0 success_keys={len(keys)} failed_keys=0 bytes_by_tier={by_tier}",
            flush=True,
        )


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.answer(self.server.part.get(url.path, parse_qs(url.query)).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        events = "".join(f"data: {json.dumps(event)}\n\n" for event in self.server.part.post(body))
        self.answer(f"{events}data: [DONE]\n\n".encode())

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def node() -> None:
    """Memory is as long as its life."""
    assert os.environ["MOONCAKE_OFFLOAD_FILE_STORAGE_PATH"].endswith("/ssd")
    assert re.fullmatch(r"127\.0\.0\.1:\d+", FLAGS["master_server_address"])
    MEMORY.mkdir(exist_ok=True)
    SSD.mkdir(exist_ok=True)
    (FOLDER / "joined").touch()

    def end(*args: object) -> None:
        (FOLDER / "joined").unlink()
        if FAULT != "immortal-memory":
            shutil.rmtree(MEMORY)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)


def serve(port: str, part: object) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    server.part = part
    server.serve_forever()


if ROLE == "master":
    serve(FLAGS["metrics_port"], Master())
elif ROLE == "node":
    node()
    serve(FLAGS["port"], None)
else:
    serve(FLAGS["port"], Vllm())
