"""gRPC server of the Open Inference Protocol, on a port of its own, in the service's event loop."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Any, TypeAlias

import grpc

from app import __version__
from app.api import auth as tokens
from app.api.dependencies import State
from app.api.open_inference.grpc_messages import SERVICE, build_messages
from app.api.open_inference.inference import Inference, calibrator_of, infer, metadata_of
from app.api.problem_details import status_of
from app.errors import ArgumentError, SegcalError, SettingsError
from app.open_inference import Tensor, from_bytes, from_elements, from_numbers, to_bytes
from app.serving.segmenter import Segmenter

log = logging.getLogger(__name__)

CRASHED = "expected a response, got an internal error; see the log for details"
MESSAGE_OVERHEAD = 64 << 10  # bytes of a message besides its images
RUNNING_CALLS = 128  # whose messages are in memory; others are rejected by gRPC itself
CODES = {
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    HTTPStatus.TOO_MANY_REQUESTS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.INTERNAL_SERVER_ERROR: grpc.StatusCode.INTERNAL,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.INSUFFICIENT_STORAGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

# grpcio has no types, and the message classes are built at run time.
Context: TypeAlias = Any
Message: TypeAlias = Any
Method = Callable[[Message, Context], Awaitable[Message]]


async def start_grpc(state: State, host: str, port: int) -> grpc.aio.Server:
    """Start the gRPC server; raises SettingsError where the port can't be bound."""
    length = state.settings.max_upload_bytes + MESSAGE_OVERHEAD
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", length),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=RUNNING_CALLS,
    )
    server.add_generic_rpc_handlers((InferenceService(state).handlers(),))
    try:
        server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise SettingsError(f"SEGCAL_GRPC_PORT: expected a free port, got {port}") from error
    await server.start()
    return server


def guard(method: Method) -> Method:
    """Return a method whose errors are answered with their gRPC status."""

    async def guarded(request: Message, context: Context) -> Message:
        try:
            return await method(request, context)
        except SegcalError as error:
            code = CODES.get(HTTPStatus(status_of(error)), grpc.StatusCode.INVALID_ARGUMENT)
            return await context.abort(code, str(error))
        except Exception:  # gRPC would send its message
            log.exception("crashed on a call of gRPC")
            return await context.abort(grpc.StatusCode.INTERNAL, CRASHED)

    return guarded


class InferenceService:
    """The methods of the gRPC service; they respond as the routes of HTTP do."""

    def __init__(self, state: State) -> None:
        self._state, self._messages = state, build_messages()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handlers of all methods."""
        methods: dict[str, Method] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    guard(method),
                    request_deserializer=self._messages[f"{name}Request"].FromString,
                    response_serializer=self._messages[f"{name}Response"].SerializeToString,
                )
                for name, method in methods.items()
            },
        )

    async def _server_live(self, _request: Message, _context: Context) -> Message:
        return self._messages["ServerLiveResponse"](live=True)

    async def _server_ready(self, _request: Message, _context: Context) -> Message:
        self._state.readiness.require()
        return self._messages["ServerReadyResponse"](ready=True)

    async def _server_metadata(self, _request: Message, _context: Context) -> Message:
        return self._messages["ServerMetadataResponse"](name="segcal", version=__version__)

    async def _model_ready(self, request: Message, context: Context) -> Message:
        segmenter = self._segmenter(context)
        predictor = segmenter.predictor(request.name)
        version = calibrator_of(request.version or None)
        await asyncio.to_thread(segmenter.calibrator, predictor, version)
        return self._messages["ModelReadyResponse"](ready=True)

    async def _model_metadata(self, request: Message, context: Context) -> Message:
        described = await asyncio.to_thread(
            metadata_of, self._segmenter(context), request.name, request.version or None
        )
        return self._messages["ModelMetadataResponse"](**described.model_dump())

    async def _model_infer(self, request: Message, context: Context) -> Message:
        segmenter, state = self._segmenter(context), self._state
        parameters = {name: value_of(each) for name, each in request.parameters.items()}
        with state.uploads.reserve(request.ByteSize()):
            async with state.admission.enter():
                return await state.admission.run(
                    lambda deadline: self._response(
                        request,
                        infer(
                            request.model_name,
                            request.model_version or None,
                            parameters,
                            list(read_inputs(request)),
                            segmenter,
                            state,
                            deadline,
                        ),
                    )
                )

    def _segmenter(self, context: Context) -> Segmenter:
        """Return the segmenter; raises UnavailableError, and UnauthorizedError without a token."""
        settings = self._state.settings
        if settings.api_tokens:
            metadata = dict(context.invocation_metadata() or ())
            accepted = *settings.api_tokens, self._state.admin_token
            tokens.check(str(metadata.get("authorization", "")), accepted)
        return self._state.readiness.require()

    def _response(self, request: Message, done: Inference) -> Message:
        outputs = done.tensors([output.name for output in request.outputs])
        parameter = self._messages["InferParameter"]
        response = self._messages["ModelInferResponse"](
            model_name=done.model, model_version=done.version, id=request.id
        )
        for name, value in done.parameters.items():
            kind = "string_param" if isinstance(value, str) else "double_param"
            response.parameters[name].CopyFrom(parameter(**{kind: value}))
        for tensor in outputs:
            response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            response.raw_output_contents.append(to_bytes(tensor.numbers))
        return response


def value_of(parameter: Message) -> object:
    """Return the value of a parameter, None without one."""
    choice = parameter.WhichOneof("choice")
    return None if choice is None else getattr(parameter, choice)


def read_inputs(request: Message) -> Iterator[Tensor]:
    """Yield the inputs of a request, from raw bytes or typed contents; raises ArgumentError."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise ArgumentError(
            f"expected raw contents of all {len(request.inputs)} inputs, got {len(raw)}"
        )
    for index, each in enumerate(request.inputs):
        name, datatype, shape = each.name, each.datatype, list(each.shape)
        if raw:
            yield from_bytes(name, datatype, shape, raw[index])
        elif datatype == "BYTES":
            yield from_elements(name, shape, list(each.contents.bytes_contents))
        elif datatype == "UINT8":
            yield from_numbers(name, datatype, shape, list(each.contents.uint_contents))
        else:
            raise ArgumentError(f"{name}: expected BYTES or UINT8, got {datatype[:40]!r}")
