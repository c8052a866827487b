"""A model behind an OpenAI-compatible address: questions and answers, with time limits and retries.

The protocol is that of https://platform.openai.com/docs/api-reference (chat/completions, completions, models), as
vLLM, SGLang, llama.cpp, Ollama and others serve it.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Self

import httpx2
import torch

from partita.core.errors import UserError, nearest
from partita.policies.complaints import Complaint, inner_status, parsed, plain, reason, retry_after

MOST = 16_000_000  # bytes of a reply that are read

Message = dict[str, str]


class RequestFailed(UserError):
    """A request that was not answered. final: every other request would fare alike (a wrong key, nobody there)."""

    def __init__(self, why: str, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


class ContextFull(RequestFailed):
    """What was asked no longer fits into the context of the model."""


class _Passing(Exception):
    """A failure that may be over the next time. wait: the seconds that the server asks for; none: nobody was there."""

    def __init__(self, why: str, wait: float = 0.0, nobody: bool = False) -> None:
        super().__init__(why)
        self.wait, self.nobody = wait, nobody


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served, and how it is asked.

    url: what stands before `/chat/completions`; usually ends in `/v1`. chat: messages, rather than plain text.
    key: sent as a bearer token, never shown; key_env: the variable it came from, for messages. timeout: seconds for one
    request, all told. retries: of a request that met 408, 429, 5xx, no connection, or no answer in time. The wait
    before retry k = 0, 1, ... with u uniform in [0, 1) is, in seconds,

        min(longest, max(backoff 2^k (1 + u) / 2, Retry-After))

    connections: requests under way at a time. Raises UserError for settings that cannot be.
    """

    url: str
    model: str
    chat: bool = True
    key: str = field(default="", repr=False)
    key_env: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 0.5
    longest: float = 60.0
    connections: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", str(address(self.url)))
        if not self.model:
            raise UserError("--model: is empty; name the model as the server does")
        if re.search(r"[^\x21-\x7e]", self.key):
            raise UserError(f"{self.key_env}: holds characters that no key has (spaces, line ends); set it anew")
        if not 0 < self.timeout < math.inf:
            raise UserError(f"--timeout: expected seconds above 0, got {self.timeout:g}")
        for name, least in (("retries", 0), ("connections", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name}: expected {least} or more, got {getattr(self, name)}")
        if not (0 <= self.backoff < math.inf and 0 <= self.longest < math.inf):
            raise UserError(f"backoff, longest: expected seconds of 0 or more, got {self.backoff:g}, {self.longest:g}")

    @property
    def shown(self) -> str:
        """The address without its query, which may hold what is nobody's business."""
        return str(httpx2.URL(self.url).copy_with(query=None))

    @property
    def path(self) -> str:
        """What is asked: `chat/completions` or `completions`."""
        return "chat/completions" if self.chat else "completions"

    def at(self, path: str) -> httpx2.URL:
        """The address of `path` on the server."""
        url = httpx2.URL(self.url)
        return url.copy_with(path=f"{url.path.rstrip('/')}/{path}")

    def wait(self, k: int, asked: float, generator: torch.Generator) -> float:
        """Seconds before retry k, `asked` of them by the server; see above."""
        u = float(torch.rand((), generator=generator, dtype=torch.float64))
        return min(self.longest, max(self.backoff * 2**k * (1 + u) / 2, asked))


def address(text: str) -> httpx2.URL:
    """The address before `/chat/completions`; UserError when it cannot be one."""
    try:
        url = httpx2.URL(text.strip())
    except httpx2.InvalidURL as error:
        raise UserError(f"--endpoint {text}: not an address ({error}); write http://localhost:8000/v1, say") from error
    if url.userinfo:
        raise UserError(
            "--endpoint: the address holds a name or password; leave it out, and put the key into an environment "
            "variable (--api-key-env)"
        )
    port = url.port is None or 0 < url.port < 65536
    if url.scheme not in ("http", "https") or not url.host or " " in text.strip() or not port:
        raise UserError(f"--endpoint {text}: not an address; write http://localhost:8000/v1, say")
    path = re.sub(r"(/chat)?/completions/?$", "", url.path)
    return url.copy_with(path=path.rstrip("/") or "/", fragment=None)


@dataclass(frozen=True)
class Asking:
    """How an answer is to be drawn. stop: strings that end it; seed: of the server's random numbers, if it has any."""

    max_tokens: int
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Said:
    """An answer. cut: it reached `max_tokens`."""

    text: str
    cut: bool = False


@dataclass
class Traffic:
    """What went over the line so far. Tokens as the server counts them; `uncounted` answers came without."""

    requests: int = 0
    retries: int = 0
    answered: int = 0
    cut: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0


class Client:
    """Asks an endpoint, many questions at a time; an asynchronous context manager.

    left_out: settings that the server turned out not to know, and that it is asked without.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.traffic = Traffic()
        self.left_out: set[str] = set()
        self._renamed = False  # max_tokens is called max_completion_tokens there
        self._names: list[str] | None = None
        self._asked_names = asyncio.Lock()

    async def __aenter__(self) -> Self:
        e = self.endpoint
        local = httpx2.URL(e.url).host in ("localhost", "127.0.0.1", "::1")
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {e.key}"} if e.key else None, timeout=None, trust_env=not local,
            limits=httpx2.Limits(max_connections=e.connections, max_keepalive_connections=e.connections),
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, said: str | list[Message], asking: Asking, generator: torch.Generator) -> Said:
        """The answer to a text, or to messages in chat. `generator` draws the waits before retries.

        Raises ContextFull, or RequestFailed where the retries are used up or would not help.
        """
        retries = self.endpoint.retries
        for k in range(retries + 1):
            try:
                return await self._once(said, asking)
            except _Passing as failure:
                if k < retries:
                    self.traffic.retries += 1
                    await asyncio.sleep(self.endpoint.wait(k, failure.wait, generator))
                    continue
                tries = "1 try" if k == 0 else f"{k + 1} tries"
                if failure.nobody:
                    what = f"--endpoint {self.endpoint.shown}: no connection after {tries} ({failure})"
                    raise RequestFailed(f"{what}; is the server running there?", final=True) from None
                raise RequestFailed(f"{failure}, after {tries}") from None
        raise AssertionError

    async def models(self) -> list[str] | None:
        """The models that the server names; None where it does not say."""
        async with self._asked_names:
            if self._names is None:
                try:
                    status, text, _ = await self._send("GET", "models", None)
                    held = json.loads(text)["data"] if status == 200 else []
                    self._names = [str(each["id"]) for each in held]
                except (_Passing, ValueError, LookupError, TypeError, RecursionError):
                    self._names = []
            return self._names or None

    async def _once(self, said: str | list[Message], asking: Asking) -> Said:
        """One try; again at once, without what the server does not know, as often as it names something new."""
        while True:
            body = self._body(said, asking)
            status, text, headers = await self._send("POST", self.endpoint.path, body)
            held = parsed(text)
            if status == 200 and (code := inner_status(held)):  # routers report what happened upstream like this
                status = code
            if status == 200:
                return self._read(held, text)
            complaint = Complaint.of(held, text, self.endpoint.key)
            if status in (408, 429) or status >= 500:
                if complaint.code == "insufficient_quota":
                    raise RequestFailed(f"--endpoint {self.endpoint.shown}: {complaint.text}", final=True)
                raise _Passing(f"HTTP {status}{complaint}", retry_after(headers.get("retry-after", "")))
            if status not in (400, 422) or not self._without(complaint, body):
                await self._refuse(status, complaint, headers)

    def _body(self, said: str | list[Message], asking: Asking) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.endpoint.model}
        body["prompt" if isinstance(said, str) else "messages"] = said
        body["max_completion_tokens" if self._renamed else "max_tokens"] = asking.max_tokens
        body["temperature"] = asking.temperature
        if asking.stop:
            body["stop"] = list(asking.stop)
        if asking.seed is not None:
            body["seed"] = asking.seed
        return {name: value for name, value in body.items() if name not in self.left_out}

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, str, httpx2.Headers]:
        """Status, text and headers of a reply, within the time limit. Raises _Passing."""
        self.traffic.requests += method == "POST"
        limit = self.endpoint.timeout
        try:
            async with asyncio.timeout(limit):
                async with self._http.stream(method, self.endpoint.at(path), json=body) as response:
                    content = bytearray()
                    async for chunk in response.aiter_bytes():
                        content += chunk
                        if len(content) > MOST:
                            break
                    return response.status_code, content[:MOST].decode("utf-8", "replace"), response.headers
        except TimeoutError:
            raise _Passing(f"no answer within {limit:g} s") from None
        except httpx2.HTTPError as error:
            raise _Passing(reason(error), nobody=isinstance(error, httpx2.ConnectError)) from None

    def _read(self, held: Any, text: str) -> Said:
        if held is None:
            raise RequestFailed(
                f"the reply is not JSON but begins {self._shown(text, 60)!r}; is {self.endpoint.shown} the address of "
                "an API? Usually it ends in /v1"
            )
        try:
            choice = held["choices"][0]
            found = choice["message"]["content"] if self.endpoint.chat else choice["text"]
        except (LookupError, TypeError):
            what = "choices[0].message.content" if self.endpoint.chat else "choices[0].text"
            raise RequestFailed(f"the reply has no {what}: {self._shown(text, 120)}") from None
        if isinstance(found, list):  # a message in parts
            found = "".join(str(part.get("text", "")) for part in found if isinstance(part, dict))
        self._count(held.get("usage"))
        cut = choice.get("finish_reason") == "length"
        self.traffic.cut += cut
        return Said("" if found is None else str(found), cut)

    def _shown(self, text: str, most: int) -> str:
        return plain(text.replace(self.endpoint.key, "***") if self.endpoint.key else text, most)

    def _count(self, usage: Any) -> None:
        traffic = self.traffic
        traffic.answered += 1
        usage = usage if isinstance(usage, dict) else {}
        asked, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not (isinstance(asked, int) and isinstance(written, int)):
            traffic.uncounted += 1
            return
        traffic.prompt_tokens += asked
        traffic.completion_tokens += written

    def _without(self, complaint: Complaint, body: dict[str, Any]) -> bool:
        """Whether the complaint is about a setting that can be left out or renamed; it is from now on."""
        name = complaint.unknown(body)
        if name == "max_tokens":
            self._renamed = True
        elif name is not None:
            self.left_out.add(name)
        return name is not None

    async def _refuse(self, status: int, complaint: Complaint, headers: httpx2.Headers) -> None:
        """Raise for a reply that no retry would change."""
        e = self.endpoint
        if status in (400, 413, 422) and complaint.context:
            raise ContextFull(f"HTTP {status}{complaint}")
        if status in (401, 403):
            fix = f"set {e.key_env} to one that it takes" if e.key else f"put it into the variable {e.key_env}"
            said = "does not take the key" if e.key else "asks for a key"
            raise RequestFailed(
                f"--endpoint {e.shown}: the server {said} (HTTP {status}{complaint}); {fix}, or name another with "
                "--api-key-env",
                final=True,
            )
        if 300 <= status < 400:
            there = plain(headers.get("location", "elsewhere"), 100)
            raise RequestFailed(f"--endpoint {e.shown}: sends on to {there}; give that address", final=True)
        if status in (400, 404, 405, 422):
            names = await self.models()
            if names is not None and e.model not in names:
                raise RequestFailed(f"--model {e.model}: {e.shown} has no such model; {nearest(e.model, names)}", True)
            if status in (404, 405):
                other = "it names the model, so try " + ("--completions" if e.chat else "--chat")
                fix = "usually the address ends in /v1" if names is None else other
                raise RequestFailed(
                    f"--endpoint {e.shown}: no {e.path} for {e.model} there (HTTP {status}{complaint}); {fix}", True
                )
        raise RequestFailed(f"HTTP {status}{complaint}")


def served(endpoint: Endpoint) -> list[str]:
    """The models that a server names; none where it does not say."""

    async def ask() -> list[str]:
        async with Client(endpoint) as client:
            return await client.models() or []

    return asyncio.run(ask())
