"""The demo's PD proxy, run as its own process: each server dies, hangs or lies at each step, and every client request
still ends by its deadline, with the answer or with an error that names the step."""

import http.client
import json
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PROXY = HERE.parent.parent / "tools" / "demo" / "proxy.py"
HOST = "127.0.0.1"
TEXT = "The Moon is round."
STEP_S = 2.5  # what a server that is stopped costs; the others answer well within it
TOTAL_S = 4 * STEP_S
PATIENT_S = 60.0  # where no limit is to be met: a slow machine must not turn another error into a 504
LATE_S = 3.0  # a loaded machine may be late, but nothing may wait without a limit


def free_port() -> int:
    for port in random.sample(range(20000, 32768), 200):
        with socket.socket() as sock:
            try:
                sock.bind((HOST, port))
                return port
            except OSError:
                continue
    raise RuntimeError("no free port below 32768")


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait(10)
    if process.stdout:
        process.stdout.close()


class Site:
    """The proxy and the ports of its two servers. Servers come and go; the proxy must outlive them all."""

    def __init__(self, step_s: float, total_s: float) -> None:
        self.deadline_s = total_s + LATE_S
        self.ports = {name: free_port() for name in ("proxy", "prefill", "decode", "bootstrap")}
        url = {name: f"http://{HOST}:{port}" for name, port in self.ports.items()}
        command = [sys.executable, str(PROXY), "--port", str(self.ports["proxy"]), "--prefill", url["prefill"]]
        command += ["--decode", url["decode"], "--bootstrap", url["bootstrap"]]
        command += ["--step-timeout", str(step_s), "--total-timeout", str(total_s)]
        self.proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.proxy.stdout.readline()
        assert line.startswith("proxy: "), f"the proxy did not start: {line!r}"

    @contextmanager
    def server(self, role: str, fault: str = "none"):
        if fault == "absent":
            yield None
            return
        command = [sys.executable, str(HERE / "fake_vllm.py"), role, str(self.ports[role])]
        process = subprocess.Popen([*command, str(self.ports["bootstrap"]), fault], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            end(process)

    def call(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        """One request, to its end. A socket that stays silent past the deadline raises, which fails the test."""
        connection = http.client.HTTPConnection(HOST, self.ports["proxy"], timeout=self.deadline_s)
        try:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, raw if method == "POST" else None, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            return reply.status, reply.read().decode()
        finally:
            connection.close()

    def complete(self, stream: bool) -> tuple[int, str]:
        begin = time.monotonic()
        result = self.call(
            "POST", "/v1/completions", {"prompt": "What is the Moon?", "max_tokens": 8, "stream": stream}
        )
        assert time.monotonic() - begin < self.deadline_s, "the request outlived its deadline"
        return result


def opened(step_s: float, total_s: float):
    site = Site(step_s, total_s)
    yield site
    assert site.proxy.poll() is None, "the proxy itself died"
    end(site.proxy)


@pytest.fixture(scope="module")
def hasty():
    yield from opened(STEP_S, TOTAL_S)


@pytest.fixture(scope="module")
def site():
    yield from opened(PATIENT_S, PATIENT_S)


@pytest.fixture
def fitting(request, status):
    """The hasty proxy where its limit is what is tested, else the patient one."""
    return request.getfixturevalue("hasty" if status == 504 else "site")


def stream_text(body: str) -> tuple[str, dict | None, bool]:
    """The text of an event stream, its error if it has one, and whether it ended with [DONE]."""
    text, error, done = "", None, False
    for line in body.splitlines():
        if line == "data: [DONE]":
            done = True
        elif line.startswith("data: "):
            event = json.loads(line[6:])
            error = event.get("error", error)
            text += "".join(choice["text"] for choice in event.get("choices", []))
    return text, error, done


@pytest.mark.parametrize("stream", [False, True])
def test_healthy_servers_give_the_whole_answer(site, stream):
    with site.server("prefill"), site.server("decode"):
        status, body = site.complete(stream)
        assert status == 200, body
        assert (
            (stream_text(body) == (TEXT, None, True)) if stream else (json.loads(body)["choices"][0]["text"] == TEXT)
        )
        assert site.call("GET", "/health")[0] == 200
        assert site.call("GET", "/v1/models") == (200, '{"data": []}')


# role, fault, status, what the message must name
FAULTS = [
    ("prefill", "absent", 502, "bootstrap"),
    ("prefill", "kill:query", 502, "bootstrap"),
    ("prefill", "stop:query", 504, "bootstrap"),
    ("prefill", "empty-query", 502, "knows no prefill engine"),
    ("prefill", "garbage-query", 502, "no JSON"),
    ("prefill", "kill:request", 502, "prefill"),
    ("prefill", "kill:reply", 502, "prefill"),
    ("prefill", "stop:request", 504, "prefill"),
    ("prefill", "stop:reply", 504, "prefill"),
    ("prefill", "http500", 502, "the fake is broken"),
    ("prefill", "http400", 400, "refused by the fake"),
    ("prefill", "garbage", 502, "no JSON"),
    ("decode", "absent", 502, "decode"),
    ("decode", "kill:request", 502, "decode"),
    ("decode", "stop:request", 504, "decode"),
    ("decode", "http500", 502, "the fake is broken"),
    ("decode", "http400", 400, "refused by the fake"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("role", "fault", "status", "named"), FAULTS)
def test_a_fault_before_the_first_token_is_an_http_error(fitting, role, fault, status, named, stream):
    other = "decode" if role == "prefill" else "prefill"
    with fitting.server(other), fitting.server(role, fault):
        got, body = fitting.complete(stream)
    message = json.loads(body)["error"]["message"]
    assert (got, named in message) == (status, True), f"{got}: {message}"


@pytest.mark.parametrize(("fault", "status"), [("kill:reply", 502), ("stop:reply", 504), ("garbage", 502)])
def test_a_fault_within_a_whole_reply_is_an_http_error(fitting, fault, status):
    with fitting.server("prefill"), fitting.server("decode", fault):
        got, body = fitting.complete(stream=False)
    assert (got, json.loads(body)["error"]["code"]) == (status, status)


@pytest.mark.parametrize(("fault", "status"), [("kill:headers", 502), ("stop:headers", 504)])
def test_a_fault_between_the_headers_and_the_first_token_keeps_its_status(fitting, fault, status):
    with fitting.server("prefill"), fitting.server("decode", fault):
        got, body = fitting.complete(stream=True)
    assert got == status, body


@pytest.mark.parametrize(
    ("fault", "status", "text"),
    [
        ("kill:stream", 502, "The Moon"),
        ("stop:stream", 504, "The Moon"),
        ("kill:done", 502, TEXT),
        ("no-done", 502, TEXT),
    ],
)
def test_a_fault_within_a_stream_is_its_last_event(fitting, fault, status, text):
    with fitting.server("prefill"), fitting.server("decode", fault):
        http_status, body = fitting.complete(stream=True)
    got, error, done = stream_text(body)
    assert (http_status, text.startswith(got), done) == (200, True, False)
    assert error["code"] == status
    assert "decode" in error["message"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{not json", "no JSON"),
        (b"[]", "JSON object"),
        ({"prompt": "x", "n": 2}, "n=2"),
        ({"prompt": ["x", "y"]}, "list of prompts"),
        ({"prompt": "x", "kv_transfer_params": {"transfer_id": "mine"}}, "kv_transfer_params"),
    ],
)
def test_a_wrong_request_is_refused_by_name(site, body, named):
    status, answer = site.call("POST", "/v1/completions", body)
    assert status == 400
    assert named in json.loads(answer)["error"]["message"]


def test_health_names_the_server_that_is_gone(site):
    with site.server("prefill"):
        status, body = site.call("GET", "/health")
    assert status == 503
    assert json.loads(body)["prefill"] == "ok"
    assert json.loads(body)["decode"] != "ok"


def test_a_client_that_leaves_ends_its_decode():
    site = Site(step_s=100.0, total_s=100.0)  # no limit of the proxy closes the connection first
    try:
        with site.server("prefill"), site.server("decode", "wait") as decode:
            body = json.dumps({"prompt": "x", "stream": True}).encode()
            with socket.create_connection((HOST, site.ports["proxy"]), timeout=PATIENT_S) as sock:
                head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                sock.sendall(head.encode() + body)
                assert b"200" in sock.recv(4096)
            readable, _, _ = select.select([decode.stdout], [], [], PATIENT_S)
            assert readable, "the decode server still works for a client that has left"
            assert decode.stdout.readline() == "closed\n"
    finally:
        end(site.proxy)


def test_every_request_ends_when_servers_are_killed_at_random(hasty):
    seed = int(os.environ.get("MC_TEST_SEED", random.randrange(1 << 32)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    ends: list[int] = []
    lock = threading.Lock()

    def client(stream: bool) -> None:
        for _ in range(20):
            status, body = hasty.complete(stream)
            good = status == 200 and (not stream or stream_text(body)[2])
            failed = status in (502, 504) or (status == 200 and stream and stream_text(body)[1] is not None)
            assert good or failed, f"{status}: {body}"
            with lock:
                ends.append(status)

    errors: list[BaseException] = []

    def guarded(stream: bool) -> None:
        try:
            client(stream)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(index % 2 == 0,)) for index in range(4)]
    with ExitStack() as stack:
        live = {role: stack.enter_context(hasty.server(role)) for role in ("prefill", "decode")}
        for thread in threads:
            thread.start()
        while any(t.is_alive() for t in threads):
            role = rng.choice(("prefill", "decode"))
            threads[0].join(rng.uniform(0.0, 0.3))
            live[role].kill()
            live[role].wait()
            live[role] = stack.enter_context(hasty.server(role))
        for thread in threads:
            thread.join()
    assert not errors, errors[0]
    assert len(ends) == 80
