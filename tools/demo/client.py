"""Sends one prompt to an OpenAI-compatible server, with a stream, and notes when each piece of text came."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout

from process import DemoError
from servers import MODEL_NAME

REQUEST_S = 600.0
ERROR_CHARS_MAX = 2000


@dataclass
class Answer:
    """Times are seconds since the epoch, as in the servers' logs."""

    sent: float
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    token_times: list[float] = field(default_factory=list)
    ended: float = 0.0

    @property
    def ttft_s(self) -> float:
        return self.token_times[0] - self.sent


def chat_body(prompt: str, max_tokens: int, salt: str) -> dict[str, Any]:
    """Greedy, so that two engines can be compared; prompts with another salt share nothing in a prefix cache."""
    return {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "cache_salt": salt,
    }


async def ask(
    session: ClientSession,
    url: str,
    body: dict[str, Any],
    request_id: str,
    show: Callable[[str], None] = lambda piece: None,
) -> Answer:
    answer = Answer(sent=time.time())
    target = f"{url}/v1/chat/completions"
    headers = {"X-Request-Id": request_id, "Connection": "close"}
    try:
        async with session.post(target, json=body, headers=headers, timeout=ClientTimeout(total=REQUEST_S)) as reply:
            if reply.status != 200:
                raise DemoError(f"{target} answered HTTP {reply.status}: {(await reply.text())[:ERROR_CHARS_MAX]}")
            finished = False
            async for line in reply.content:
                finished = read_event(line, answer, show) or finished
    except (ClientError, OSError, TimeoutError) as exc:
        raise DemoError(f"the request to {target} failed: {exc or type(exc).__name__}") from exc
    if not finished or not answer.token_times or answer.prompt_tokens == 0:
        raise DemoError(f"the stream from {target} ended early, after {len(answer.token_times)} pieces of text")
    answer.ended = time.time()
    return answer


def read_event(line: bytes, answer: Answer, show: Callable[[str], None]) -> bool:
    """Take one line of the event stream; true at its end."""
    if not line.startswith(b"data: "):
        return False
    data = line[6:].strip()
    if data == b"[DONE]":
        return True
    event = json.loads(data)
    if "error" in event:
        raise DemoError(f"the stream ended with an error: {event['error'].get('message', event['error'])}")
    for choice in event.get("choices", []):
        answer.token_ids += choice.get("token_ids") or []
        piece = choice.get("delta", {}).get("content")
        if piece:
            answer.token_times.append(time.time())
            answer.text += piece
            show(piece)
    if event.get("usage"):
        answer.prompt_tokens = event["usage"]["prompt_tokens"]
    return False
