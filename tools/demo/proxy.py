"""A small OpenAI-compatible proxy in front of a prefill and a decode server: prefill and decode apart ("PD").

For each request it asks the prefill server for one token and tells it to keep the KV cache for a named
transfer, then gives the whole request to the decode server with the name of that transfer and the place to
fetch the KV from. The tokens that the client sees all come from the decode server.

Every client request ends: with the decode server's answer, or with an OpenAI-style error object that names the
step and the server (502: it died, refused or answered nonsense; 504: it did not answer in time). A stream that
has begun ends with that object as its last event and without [DONE].

The fields of kv_transfer_params are vLLM's contract with its MooncakeConnector. Runs inside the demo, or alone:
    python proxy.py --prefill http://127.0.0.1:8100 --bootstrap http://127.0.0.1:8998 --decode http://127.0.0.1:8200
"""

import argparse
import asyncio
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, web

BODY_BYTES_MAX = 16 << 20
REPLY_ERROR_BYTES_MAX = 2000
CLIENT_WRITE_S = 10.0
SSE_END = b"data: [DONE]"

Observer = Callable[[str, str], None]


@dataclass(frozen=True)
class ProxyConfig:
    """Where the servers are and how long each step may take. The sum of a request never passes total_s."""

    prefill_url: str
    decode_url: str
    bootstrap_url: str
    connect_s: float = 5.0
    bootstrap_s: float = 10.0
    prefill_s: float = 120.0
    first_token_s: float = 120.0
    between_tokens_s: float = 60.0
    total_s: float = 600.0


class ProxyError(Exception):
    """A request that ends with an error: the HTTP status and a sentence for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class PassThrough(Exception):
    """A server's own 4xx answer, which the client gets as it is."""

    def __init__(self, status: int, body: bytes, content_type: str) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.body = body
        self.content_type = content_type


@dataclass
class Exchange:
    """One client request on its way through the proxy."""

    request: web.Request
    request_id: str
    transfer_id: str = field(default_factory=lambda: f"xfer-{uuid.uuid4().hex}")
    stream: web.StreamResponse | None = None  # set once the first bytes of a stream have gone to the client
    at: str = "reading the request"  # the step it is in, for the message of the total limit


def error_object(status: int, message: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "upstream_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def check_body(body: Any) -> dict[str, Any]:
    """What a proxy of one transfer per request cannot pass on is refused here, by name."""
    if not isinstance(body, dict):
        raise ProxyError(400, "the request's body must be a JSON object")
    for name in ("n", "best_of"):
        if body.get(name) not in (None, 1):
            raise ProxyError(
                400, f"{name}={body[name]!r}: this proxy moves one KV cache per request, so only 1 is possible"
            )
    prompt = body.get("prompt")
    if isinstance(prompt, list) and (len(prompt) == 0 or not isinstance(prompt[0], int)):
        raise ProxyError(400, "prompt: a list of prompts is not possible here, send one request per prompt")
    if body.get("kv_transfer_params") is not None:
        raise ProxyError(400, "kv_transfer_params is the proxy's own field: leave it out")
    return body


def prefill_body(body: dict[str, Any], transfer_id: str) -> dict[str, Any]:
    """The same request, cut to one token that is thrown away; its KV cache stays at the prefill server."""
    out = {k: v for k, v in body.items() if k not in ("stream_options", "min_tokens", "max_completion_tokens")}
    out["stream"] = False
    out["max_tokens"] = 1
    out["kv_transfer_params"] = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer_id}
    return out


def decode_body(body: dict[str, Any], transfer_id: str, engine_id: str, bootstrap_url: str) -> dict[str, Any]:
    params = {
        "do_remote_decode": False,
        "do_remote_prefill": True,
        "transfer_id": transfer_id,
        "remote_engine_id": engine_id,
        "remote_bootstrap_addr": bootstrap_url,
    }
    return {**body, "kv_transfer_params": params}


class Proxy:
    """The handlers. Open it with `async with`; `app()` gives the aiohttp application."""

    def __init__(self, config: ProxyConfig, observe: Observer | None = None) -> None:
        self.config = config
        self._observe = observe or (lambda request_id, step: None)
        self._session: ClientSession | None = None

    async def __aenter__(self) -> "Proxy":
        # A fresh connection per call: a pooled one to a server that has since died would fail a good request.
        timeout = ClientTimeout(total=None, sock_connect=self.config.connect_s)
        self._session = ClientSession(timeout=timeout, headers={"Connection": "close"})
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> ClientSession:
        assert self._session is not None, "Proxy is used outside of `async with`"
        return self._session

    def app(self) -> web.Application:
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post("/v1/completions", self.completion)
        app.router.add_post("/v1/chat/completions", self.completion)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health", self.health)
        return app

    async def completion(self, request: web.Request) -> web.StreamResponse:
        ex = Exchange(request, request.headers.get("X-Request-Id") or uuid.uuid4().hex)
        try:
            async with asyncio.timeout(self.config.total_s):
                return await self._run(ex)
        except ProxyError as exc:
            return await self._fail(ex, exc.status, exc.message)
        except PassThrough as exc:
            return web.Response(status=exc.status, body=exc.body, content_type=exc.content_type)
        except TimeoutError:
            return await self._fail(ex, 504, f"{ex.at}: the request did not end within {self.config.total_s:g} s")

    async def _run(self, ex: Exchange) -> web.StreamResponse:
        try:
            body = check_body(await ex.request.json())
        except (json.JSONDecodeError, UnicodeDecodeError) as exc:
            raise ProxyError(400, f"the request's body is no JSON: {exc}") from exc
        self._observe(ex.request_id, "received")
        engine_id = await self._engine_id()
        await self._prefill(ex, body)
        return await self._decode(ex, body, engine_id)

    async def _engine_id(self) -> str:
        """The prefill engine's id, asked for each request: it changes when the prefill server restarts."""
        cfg = self.config
        url = f"{cfg.bootstrap_url}/query"
        async with Step("bootstrap", url, cfg.bootstrap_s):
            async with self.session.get(url) as reply:
                await check_status(reply, url)
                table = await reply.json(content_type=None)
        try:
            engine_id = table["0"]["engine_id"]
        except (KeyError, TypeError) as exc:
            raise ProxyError(
                502, f"the bootstrap at {url} knows no prefill engine: it answered {table!r:.200}"
            ) from exc
        if not isinstance(engine_id, str) or not engine_id:
            raise ProxyError(502, f"the bootstrap at {url} gave an engine_id that is no text: {engine_id!r:.200}")
        return engine_id

    async def _prefill(self, ex: Exchange, body: dict[str, Any]) -> None:
        cfg = self.config
        url = cfg.prefill_url + ex.request.path
        ex.at = f"prefill: {url}"
        self._observe(ex.request_id, "prefill_sent")
        async with Step("prefill", url, cfg.prefill_s):
            async with self._post(ex, url, prefill_body(body, ex.transfer_id)) as reply:
                await check_status(reply, url)
                answer = await reply.json(content_type=None)
        if not isinstance(answer, dict) or "choices" not in answer:
            raise ProxyError(502, f"the prefill server at {url} answered without choices: {answer!r:.200}")
        self._observe(ex.request_id, "prefill_done")

    async def _decode(self, ex: Exchange, body: dict[str, Any], engine_id: str) -> web.StreamResponse:
        cfg = self.config
        url = cfg.decode_url + ex.request.path
        call = decode_body(body, ex.transfer_id, engine_id, cfg.bootstrap_url)
        ex.at = f"decode: {url}"
        self._observe(ex.request_id, "decode_sent")
        if body.get("stream"):
            return await self._decode_stream(ex, url, call)
        async with Step("decode", url, cfg.total_s):
            async with self._post(ex, url, call) as reply:
                await check_status(reply, url)
                payload = await reply.read()
                json.loads(payload)
        self._observe(ex.request_id, "done")
        return web.Response(body=payload, content_type="application/json", headers={"X-Request-Id": ex.request_id})

    async def _decode_stream(self, ex: Exchange, url: str, call: dict[str, Any]) -> web.StreamResponse:
        """Relay events as they come. The client's 200 goes out with the first: an earlier error keeps its status."""
        cfg = self.config
        tail = b""
        async with Step("decode: wait for the first token", url, cfg.first_token_s) as step:
            async with self._post(ex, url, call) as reply:
                await check_status(reply, url)
                while chunk := await reply.content.readany():
                    step.pause()
                    if ex.stream is None:
                        self._observe(ex.request_id, "first_token")
                        ex.stream = await self._open_stream(ex)
                    await ex.stream.write(chunk)
                    tail = (tail + chunk)[-64:]
                    step.restart("decode: wait for the next token", cfg.between_tokens_s)
        if SSE_END not in tail:
            raise ProxyError(502, f"the decode server at {url} ended the stream early: it died or was stopped")
        assert ex.stream is not None
        await ex.stream.write_eof()
        self._observe(ex.request_id, "done")
        return ex.stream

    def _post(self, ex: Exchange, url: str, body: dict[str, Any]):
        return self.session.post(url, json=body, headers={"X-Request-Id": ex.request_id})

    async def _open_stream(self, ex: Exchange) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Request-Id": ex.request_id}
        stream = web.StreamResponse(headers=headers)
        await stream.prepare(ex.request)
        return stream

    async def _fail(self, ex: Exchange, status: int, message: str) -> web.StreamResponse:
        self._observe(ex.request_id, "failed")
        if ex.stream is None:
            return web.json_response(
                error_object(status, message), status=status, headers={"X-Request-Id": ex.request_id}
            )
        event = b"data: " + json.dumps(error_object(status, message)).encode() + b"\n\n"
        try:
            async with asyncio.timeout(CLIENT_WRITE_S):
                await ex.stream.write(event)
                await ex.stream.write_eof()
        except (TimeoutError, ConnectionError):
            if ex.request.transport is not None:
                ex.request.transport.abort()
        return ex.stream

    async def models(self, request: web.Request) -> web.StreamResponse:
        url = self.config.decode_url + "/v1/models"
        try:
            async with Step("list models", url, self.config.bootstrap_s):
                async with self.session.get(url) as reply:
                    await check_status(reply, url)
                    return web.json_response(await reply.json(content_type=None))
        except ProxyError as exc:
            return web.json_response(error_object(exc.status, exc.message), status=exc.status)
        except PassThrough as exc:
            return web.Response(status=exc.status, body=exc.body, content_type=exc.content_type)

    async def health(self, request: web.Request) -> web.StreamResponse:
        """200 when both servers are healthy, else 503; the body says which is not and why."""
        urls = {"prefill": self.config.prefill_url, "decode": self.config.decode_url}
        state: dict[str, str] = {}
        for role, url in urls.items():
            try:
                async with Step("health", url, self.config.connect_s):
                    async with self.session.get(f"{url}/health") as reply:
                        state[role] = "ok" if reply.status == 200 else f"HTTP {reply.status}"
            except ProxyError as exc:
                state[role] = exc.message
        good = all(v == "ok" for v in state.values())
        return web.json_response(state, status=200 if good else 503)


class Step:
    """`async with Step(what, url, seconds)`: what goes wrong inside becomes a ProxyError naming step and server."""

    def __init__(self, what: str, url: str, seconds: float) -> None:
        self.what = what
        self.url = url
        self.seconds = seconds
        self._timeout = asyncio.timeout(seconds)

    def pause(self) -> None:
        """The next wait is for the client, whose pace is bounded by the request's own limit."""
        self._timeout.reschedule(None)

    def restart(self, what: str, seconds: float) -> None:
        self.what = what
        self.seconds = seconds
        self._timeout.reschedule(asyncio.get_running_loop().time() + seconds)

    async def __aenter__(self) -> "Step":
        await self._timeout.__aenter__()
        return self

    async def __aexit__(self, kind: Any, exc: BaseException | None, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, exc, trace)
        except TimeoutError as late:
            raise ProxyError(504, f"{self.what}: {self.url} gave no answer within {self.seconds:g} s") from late
        if isinstance(exc, ProxyError):  # from check_status(), which knows the server but not the step
            exc.message = f"{self.what}: {exc.message}"
        if isinstance(exc, json.JSONDecodeError | UnicodeDecodeError):
            raise ProxyError(502, f"{self.what}: {self.url} answered what is no JSON ({exc})") from exc
        if isinstance(exc, TimeoutError):  # aiohttp's own connect limit
            raise ProxyError(504, f"{self.what}: {self.url} took no connection in time") from exc
        if isinstance(exc, ClientError | OSError):
            detail = str(exc) or type(exc).__name__
            raise ProxyError(502, f"{self.what}: {self.url} failed: {detail:.300}") from exc


async def check_status(reply: ClientResponse, url: str) -> None:
    """200 passes; a 4xx goes to the client as it is (its request was wrong); anything else is the server's failure."""
    if reply.status == 200:
        return
    body = await reply.read()
    if 400 <= reply.status < 500:
        raise PassThrough(reply.status, body, reply.content_type)
    text = body[:REPLY_ERROR_BYTES_MAX].decode(errors="replace")
    raise ProxyError(502, f"{url} answered HTTP {reply.status}: {text}")


async def start_proxy(proxy: Proxy, host: str, port: int) -> web.AppRunner:
    """Serve until the caller awaits cleanup() of what this returns. A client that leaves cancels its request."""
    runner = web.AppRunner(proxy.app(), handler_cancellation=True, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner


async def serve(args: argparse.Namespace) -> None:
    config = ProxyConfig(
        args.prefill,
        args.decode,
        args.bootstrap,
        connect_s=min(5.0, args.step_timeout),
        bootstrap_s=min(10.0, args.step_timeout),
        prefill_s=args.step_timeout,
        first_token_s=args.step_timeout,
        between_tokens_s=args.step_timeout,
        total_s=args.total_timeout,
    )
    async with Proxy(config) as proxy:
        runner = await start_proxy(proxy, args.host, args.port)
        print(f"proxy: http://{args.host}:{args.port}/v1/completions", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="proxy.py", description="OpenAI-compatible proxy for prefill and decode apart"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--prefill", required=True, metavar="URL", help="the prefill server")
    parser.add_argument("--decode", required=True, metavar="URL", help="the decode server")
    parser.add_argument("--bootstrap", required=True, metavar="URL", help="the prefill server's Mooncake bootstrap")
    parser.add_argument(
        "--step-timeout", type=float, default=120.0, metavar="S", help="limit of each step of a request"
    )
    parser.add_argument("--total-timeout", type=float, default=600.0, metavar="S", help="limit of a whole request")
    try:
        asyncio.run(serve(parser.parse_args()))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
