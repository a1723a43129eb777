"""`/v2`: the Open Inference Protocol v2 over HTTP, with binary tensors."""

import zlib

from fastapi import APIRouter, Request, Response

from app import __version__
from app.api.dependencies import SegmenterDep, State, StateDep, TokenCheck, run_on_body
from app.api.open_inference.inference import calibrator_of, check_names, infer, metadata_of
from app.api.open_inference.schemas import (
    INFER_BODY,
    INFER_RESPONSES,
    OCTETS,
    Live,
    ModelReady,
    Ready,
    Server,
)
from app.api.openapi import answers
from app.api.responses import respond
from app.deadline import Deadline
from app.errors import MediaTypeError, TooLargeError, UndecodableError
from app.open_inference import (
    HEADER_LENGTH,
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    decode_body,
    encode_body,
    read_tensors,
)
from app.serving.segmenter import Segmenter

router = APIRouter(prefix="/v2", tags=["open inference"])

JSON = "application/json"
VERSION_ANSWERS = answers(404, 409, 503)
GZIP_OR_ZLIB = zlib.MAX_WBITS | 32  # the format is recognised by its first bytes


@router.get("/", include_in_schema=False)
@router.get("", operation_id="get_server_metadata")
async def server_metadata() -> Server:
    """Return the server's name and version, and the protocol's extensions that it has."""
    return Server(name="segcal", version=__version__, extensions=["binary_tensor_data"])


@router.get("/health/live", operation_id="is_server_live")
async def live() -> Live:
    """Respond 200 while the process is alive."""
    return Live(live=True)


@router.get("/health/ready", operation_id="is_server_ready", responses=answers(503))
async def ready(state: StateDep) -> Ready:
    """Respond 200 once the models are loaded and warm, 503 before and while draining."""
    state.readiness.require()
    return Ready(ready=True)


@router.get(
    "/models/{model}",
    operation_id="get_model_metadata",
    dependencies=[TokenCheck],
    responses=VERSION_ANSWERS,
)
def model_metadata(model: str, segmenter: SegmenterDep) -> ModelMetadata:
    """Return a model's inputs, outputs and versions: its calibrators and `uncalibrated`."""
    return metadata_of(segmenter, model, None)


@router.get(
    "/models/{model}/versions/{version}",
    operation_id="get_version_metadata",
    dependencies=[TokenCheck],
    responses=VERSION_ANSWERS,
)
def version_metadata(model: str, version: str, segmenter: SegmenterDep) -> ModelMetadata:
    """Return the inputs and outputs of one version of a model."""
    return metadata_of(segmenter, model, version)


@router.get(
    "/models/{model}/ready",
    operation_id="is_model_ready",
    dependencies=[TokenCheck],
    responses=VERSION_ANSWERS,
)
def model_ready(model: str, segmenter: SegmenterDep) -> ModelReady:
    """Respond 200 where a model and its active calibrator can be used."""
    return _ready(segmenter, model, None)


@router.get(
    "/models/{model}/versions/{version}/ready",
    operation_id="is_version_ready",
    dependencies=[TokenCheck],
    responses=VERSION_ANSWERS,
)
def version_ready(model: str, version: str, segmenter: SegmenterDep) -> ModelReady:
    """Respond 200 where one version of a model can be used."""
    return _ready(segmenter, model, version)


def _ready(segmenter: Segmenter, model: str, version: str | None) -> ModelReady:
    segmenter.calibrator(segmenter.predictor(model), calibrator_of(version))
    return ModelReady(name=model, ready=True)


@router.post(
    "/models/{model}/infer",
    operation_id="infer",
    dependencies=[TokenCheck],
    response_model=InferenceResponse,
    openapi_extra=INFER_BODY,
    responses=INFER_RESPONSES,
)
async def infer_active(
    model: str, request: Request, state: StateDep, segmenter: SegmenterDep
) -> Response:
    """Segment images with a model's active calibrator.

    The input `image` has BYTES, each element an encoded image, or UINT8 [N,H,W,3]. The outputs are
    `mask` and `confidence`, both [N,H,W]. Parameters are `max_error`, `min_confidence` and `tta`.
    """
    return await _infer(model, None, request, state, segmenter)


@router.post(
    "/models/{model}/versions/{version}/infer",
    operation_id="infer_version",
    dependencies=[TokenCheck],
    response_model=InferenceResponse,
    openapi_extra=INFER_BODY,
    responses=INFER_RESPONSES,
)
async def infer_version(
    model: str, version: str, request: Request, state: StateDep, segmenter: SegmenterDep
) -> Response:
    """Segment images with one version of a model: a calibrator's id or `uncalibrated`."""
    return await _infer(model, version, request, state, segmenter)


async def _infer(
    model: str, version: str | None, request: Request, state: State, segmenter: Segmenter
) -> Response:
    encoding = request.headers.get("content-encoding", "identity").lower()
    header_length = request.headers.get(HEADER_LENGTH)
    return await run_on_body(
        request,
        state,
        lambda body, deadline: respond_to_body(
            decompress(body, encoding, state.settings.max_upload_bytes),
            header_length, model, version, segmenter, state, deadline,
        ),
    )  # fmt: skip


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Decompress a body; raises TooLargeError, UndecodableError, MediaTypeError."""
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise MediaTypeError(f"expected a content encoding gzip or deflate, got {encoding[:80]!r}")
    stream = zlib.decompressobj(GZIP_OR_ZLIB)
    try:
        data = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise UndecodableError(f"expected a body in {encoding}, got: {error}") from error
    if len(data) > max_bytes:
        raise TooLargeError(f"expected a body of at most {max_bytes} bytes decompressed, got more")
    if not stream.eof:
        raise UndecodableError(f"expected a whole body in {encoding}, got one that breaks off")
    return data


def respond_to_body(
    body: bytes,
    header_length: str | None,
    model: str,
    version: str | None,
    segmenter: Segmenter,
    state: State,
    deadline: Deadline,
) -> Response:
    """Run the inference that a body asks for, and encode its outputs."""
    message, data = decode_body(body, header_length, InferenceRequest)
    check_names([output.name for output in message.outputs])
    inputs = list(read_tensors(message.inputs, data))
    done = infer(model, version, message.parameters, inputs, segmenter, state, deadline)
    binary_by_default = bool(message.parameters.get("binary_data_output", False))
    binary = {
        output.name: bool(output.parameters.get("binary_data", binary_by_default))
        for output in message.outputs
    }
    header = {
        "model_name": done.model, "model_version": done.version, "parameters": done.parameters,
    }  # fmt: skip
    if message.id:
        header["id"] = message.id
    encoded, length = encode_body(
        header,
        "outputs",
        [(each, binary.get(each.name, binary_by_default)) for each in done.tensors(list(binary))],
    )
    headers = {"X-Model": done.model, "X-Calibrator": calibrator_of(done.version)}
    if length is None:
        return respond(encoded, JSON, headers)
    return respond(encoded, OCTETS, {**headers, HEADER_LENGTH: str(length)})
