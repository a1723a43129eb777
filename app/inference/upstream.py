"""Inference servers that run the networks of remote backbones, over the Open Inference Protocol.

A connection to a server may break at any time, and the server may come back with another model.
So its metadata are compared with those at loading, for each connection and every few seconds.
"""

import asyncio
import hashlib
import json
import threading
import time
import weakref
from collections.abc import Coroutine, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from numpy.typing import NDArray

from app.deadline import Deadline
from app.errors import ArgumentError, InputError, UpstreamError
from app.open_inference import (
    HEADER_LENGTH,
    InferenceResponse,
    ModelMetadata,
    Tensor,
    decode_body,
    encode_body,
    read_tensors,
)

T = TypeVar("T")

CONNECT_S = 5.0
ANSWER_S = 60.0  # of a run; a request's deadline ends it earlier
CLOSE_S = 1.0
CHECK_S = 5.0  # between two comparisons of the metadata
ERROR_LENGTH = 300
REJECTED_INPUT = (400, 422)  # of HTTP


@dataclass(frozen=True)
class RemoteModel:
    """A model on an inference server, as the card of the model `name` states it.

    Without a version the server chooses.
    """

    name: str
    server: str
    model: str
    version: str | None

    @property
    def url(self) -> str:
        """The address of the model."""
        url = f"{self.server.rstrip('/')}/v2/models/{quote(self.model, safe='')}"
        return url if self.version is None else f"{url}/versions/{quote(self.version, safe='')}"


def fetch_metadata(remote: RemoteModel) -> ModelMetadata:
    """Fetch the metadata of a remote model; raises UpstreamError."""
    try:
        response = httpx2.get(remote.url, timeout=CONNECT_S)
    except httpx2.HTTPError as error:
        raise unreachable(remote, error) from error
    return parse_metadata(remote, response)


def parse_metadata(remote: RemoteModel, response: httpx2.Response) -> ModelMetadata:
    """Parse the metadata of a model; raises UpstreamError for an error or another answer."""
    if not response.is_success:
        raise failed(remote, response)
    try:
        return decode_body(response.content, None, ModelMetadata)[0]
    except InputError as error:
        raise UpstreamError(f"{remote.name}: expected metadata of a model, {error}") from error


def identity(remote: RemoteModel, metadata: ModelMetadata) -> str:
    """Compute the SHA-256 of the metadata that identify a model, in hex.

    These are its name, versions, platform, inputs and outputs. The address of its server is not
    among them, and the protocol has no hash of the weights.
    """
    values = metadata.model_dump(mode="json")
    if remote.version is not None:
        values["versions"] = [remote.version]
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def unreachable(remote: RemoteModel, error: Exception) -> UpstreamError:
    """Return the error for a server that does not answer."""
    return UpstreamError(
        f"{remote.name}: expected an answer of the inference server that its card names, "
        f"got {type(error).__name__}"
    )


def failed(remote: RemoteModel, response: httpx2.Response) -> UpstreamError:
    """Return the error for an answer that is an error."""
    return UpstreamError(
        f"{remote.name}: expected an answer of the inference server that its card names, "
        f"got {response.status_code}: {error_text(response)}"
    )


def error_text(response: httpx2.Response) -> str:
    """Return the first line of an error's text, in JSON below `error`."""
    try:
        text = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        text = response.text
    return (text.strip().splitlines() or [""])[0][:ERROR_LENGTH]


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _close(
    client: httpx2.AsyncClient, loop: asyncio.AbstractEventLoop, thread: threading.Thread
) -> None:
    """Close the connections of a client and end the thread of its loop."""

    async def stop() -> None:
        await client.aclose()
        loop.stop()

    asyncio.run_coroutine_threadsafe(stop(), loop)
    if threading.current_thread() is not thread:  # objects are collected in any thread
        thread.join(CLOSE_S)


class Upstream:
    """A model on an inference server; safe for threads.

    Requests run in an event loop of a thread, since a request there can be cancelled, and a
    blocking one can't be.
    """

    def __init__(self, remote: RemoteModel, sha256: str) -> None:
        self._remote, self._sha256 = remote, sha256
        self._version: str | None = None  # that of the first answer
        self._checked_at = -CHECK_S  # by the monotonic clock
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(ANSWER_S, connect=CONNECT_S, pool=None)
        )
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_serve, args=[self._loop], name=remote.name, daemon=True)
        thread.start()
        weakref.finalize(self, _close, self._client, self._loop, thread)

    def infer(
        self, images: Tensor, outputs: Sequence[str], deadline: Deadline
    ) -> dict[str, NDArray[Any]]:
        """Run the model on one input; return its outputs, all those named or, without names, all.

        Raises UpstreamError where the server does not answer or serves another model than at
        loading, ArgumentError for an input that it rejects, and UnavailableError once the deadline
        has expired.
        """
        header: dict[str, object] = {"parameters": {"binary_data_output": True}}
        if outputs:
            header["outputs"] = [{"name": n, "parameters": {"binary_data": True}} for n in outputs]
        body, length = encode_body(header, "inputs", [(images, True)])
        headers = {HEADER_LENGTH: str(length), "Content-Type": "application/octet-stream"}
        response = self._run(self._post(body, headers), deadline)
        if response.status_code in REJECTED_INPUT:
            raise ArgumentError(error_text(response))
        if not response.is_success:
            raise failed(self._remote, response)
        return self._decode(response, outputs)

    def _run(self, request: Coroutine[Any, Any, T], deadline: Deadline) -> T:
        future = asyncio.run_coroutine_threadsafe(request, self._loop)

        def stop() -> None:
            future.cancel()

        try:
            with deadline.stopping(stop):
                return future.result()
        except CancelledError as error:
            raise unreachable(self._remote, error) from error

    async def _post(self, body: bytes, headers: dict[str, str]) -> httpx2.Response:
        connected = False

        async def trace(event: str, _info: object) -> None:
            nonlocal connected
            connected = connected or event == "connection.connect_tcp.complete"

        try:
            await self._check()
            response = await self._client.post(
                f"{self._remote.url}/infer",
                content=body,
                headers=headers,
                extensions={"trace": trace},
            )
            if connected:  # it may be another process than that of the last check
                await self._check(max_age_s=0)
        except httpx2.HTTPError as error:
            raise unreachable(self._remote, error) from error
        return response

    async def _check(self, max_age_s: float = CHECK_S) -> None:
        """Compare the model with that at loading; raises UpstreamError for another one.

        A comparison that is younger than `max_age_s` is not repeated.
        """
        now = time.monotonic()
        if now - self._checked_at < max_age_s:
            return
        response = await self._client.get(self._remote.url, timeout=CONNECT_S)
        if identity(self._remote, parse_metadata(self._remote, response)) != self._sha256:
            raise self._changed()
        self._checked_at = now

    def _decode(self, response: httpx2.Response, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        try:
            length = response.headers.get(HEADER_LENGTH)
            message, data = decode_body(response.content, length, InferenceResponse)
            tensors = {tensor.name: tensor for tensor in read_tensors(message.outputs, data)}
        except InputError as error:
            raise UpstreamError(f"{self._remote.name}: expected tensors, {error}") from error
        self._version = self._version or message.model_version
        if message.model_version != self._version:
            raise self._changed()
        if missing := [name for name in outputs if name not in tensors]:
            raise UpstreamError(
                f"{self._remote.name}: expected the outputs {missing}, got {list(tensors)}"
            )
        return {
            name: tensor.values
            for name, tensor in tensors.items()
            if not isinstance(tensor.values, list)
        }

    def _changed(self) -> UpstreamError:
        return UpstreamError(
            f"{self._remote.name}: expected the model that its inference server had when it was "
            "loaded, got another one: load the models again, by a restart, to serve it"
        )
