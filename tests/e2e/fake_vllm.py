"""A stand-in for one vLLM server of the demo, which dies, hangs or lies at a chosen step. Standard library only.

usage: fake_vllm.py prefill|decode PORT BOOTSTRAP_PORT FAULT

Prints "ready" when it listens. It speaks just enough HTTP/1.1 for the proxy, checks the kv_transfer_params that it gets,
and answers with the tokens of WORDS. Faults end it by SIGKILL or stop it by SIGSTOP, so that the kernel's view is the real one.
"""

import asyncio
import json
import os
import signal
import sys

HOST = "127.0.0.1"
ENGINE_ID = "engine-of-the-fake"
WORDS = ["The", " Moon", " is", " round", "."]
ROLE, PORT, BOOTSTRAP_PORT, FAULT = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]


def fault_here(step: str) -> None:
    """Do what FAULT says at this step: kill:STEP or stop:STEP."""
    if FAULT == f"kill:{step}":
        os.kill(os.getpid(), signal.SIGKILL)
    if FAULT == f"stop:{step}":
        os.kill(os.getpid(), signal.SIGSTOP)


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str, dict]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    method, path, _ = head.split(" ", 2)
    length = next((int(h.split(":")[1]) for h in head.splitlines() if h.lower().startswith("content-length:")), 0)
    body = json.loads(await reader.readexactly(length)) if length else {}
    return method, path, body


def reply(status: int, body: bytes, kind: str = "application/json") -> bytes:
    return (
        f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        + body
    )


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def wrong_params(params: dict) -> str | None:
    """What is wrong with the proxy's kv_transfer_params for this role, or None."""
    if not params.get("transfer_id"):
        return "no transfer_id"
    if ROLE == "prefill":
        good = params.get("do_remote_decode") is True and params.get("do_remote_prefill") is False
        return None if good else f"wrong for prefill: {params}"
    want = {
        "do_remote_decode": False,
        "do_remote_prefill": True,
        "remote_engine_id": ENGINE_ID,
        "remote_bootstrap_addr": f"http://{HOST}:{BOOTSTRAP_PORT}",
    }
    return None if want.items() <= params.items() else f"wrong for decode: {params}"


async def completion(body: dict, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    fault_here("request")
    wrong = wrong_params(body.get("kv_transfer_params") or {})
    if wrong or FAULT == "http400":
        writer.write(
            reply(400, json.dumps({"error": {"message": wrong or "refused by the fake", "code": 400}}).encode())
        )
    elif FAULT == "http500":
        writer.write(reply(500, b'{"error": {"message": "the fake is broken"}}'))
    elif FAULT == "garbage":
        writer.write(reply(200, b"<html>"))
    elif body.get("stream"):
        await stream(reader, writer)
    else:
        limit = 1 if ROLE == "prefill" else len(WORDS)
        if ROLE == "prefill" and body["max_tokens"] != 1:
            writer.write(reply(400, b'{"error": {"message": "prefill asked for more than one token"}}'))
            return
        full = reply(200, json.dumps({"choices": [{"text": "".join(WORDS[:limit])}]}).encode())
        writer.write(full[: len(full) // 2])
        await writer.drain()
        fault_here("reply")
        writer.write(full[len(full) // 2 :])
    await writer.drain()


async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    await writer.drain()
    fault_here("headers")
    for number, word in enumerate(WORDS):
        event = json.dumps({"choices": [{"text": word}]}).encode()
        writer.write(chunk(b"data: " + event + b"\n\n"))
        await writer.drain()
        if number == 1:
            fault_here("stream")
            if FAULT == "wait":
                await reader.read()  # until the other side closes
                print("closed", flush=True)
                return
    if FAULT != "no-done":
        fault_here("done")
        writer.write(chunk(b"data: [DONE]\n\n"))
    writer.write(b"0\r\n\r\n")


async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        method, path, body = await read_request(reader)
        if path == "/health":
            writer.write(reply(200, b""))
        elif path == "/query":
            fault_here("query")
            table = {} if FAULT == "empty-query" else {"0": {"engine_id": ENGINE_ID, "worker_addr": {}}}
            writer.write(reply(200, b"nonsense" if FAULT == "garbage-query" else json.dumps(table).encode()))
        elif path == "/v1/models":
            writer.write(reply(200, b'{"data": []}'))
        elif method == "POST":
            await completion(body, reader, writer)
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    servers = [await asyncio.start_server(serve_one, HOST, PORT)]
    if ROLE == "prefill":
        servers.append(await asyncio.start_server(serve_one, HOST, BOOTSTRAP_PORT))
    print("ready", flush=True)
    await asyncio.gather(*(s.serve_forever() for s in servers))


asyncio.run(main())
