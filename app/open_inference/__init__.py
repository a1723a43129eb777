"""The Open Inference Protocol v2 over HTTP: tensors, and bodies with the binary extension."""

from app.open_inference.messages import (
    HEADER_LENGTH,
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    TensorMetadata,
    decode_body,
    encode_body,
    read_tensors,
    validate,
)
from app.open_inference.tensors import (
    Tensor,
    from_bytes,
    from_elements,
    from_numbers,
    to_bytes,
)

__all__ = [
    "HEADER_LENGTH",
    "InferenceRequest",
    "InferenceResponse",
    "ModelMetadata",
    "Tensor",
    "TensorMetadata",
    "decode_body",
    "encode_body",
    "from_bytes",
    "from_elements",
    "from_numbers",
    "read_tensors",
    "to_bytes",
    "validate",
]
