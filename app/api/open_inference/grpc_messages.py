"""Message classes of the protocol's gRPC service, built from a table of their fields.

The packages that contain generated ones (tritonclient, kserve) need an older protobuf than the
service installs, and register them for the whole process, so that only one could be imported.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = "inference.GRPCInferenceService"
Field = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    "bool": Field.TYPE_BOOL, "int32": Field.TYPE_INT32, "int64": Field.TYPE_INT64,
    "uint32": Field.TYPE_UINT32, "uint64": Field.TYPE_UINT64, "float": Field.TYPE_FLOAT,
    "double": Field.TYPE_DOUBLE, "string": Field.TYPE_STRING, "bytes": Field.TYPE_BYTES,
}  # fmt: skip

# By message: fields as "name type number"; a type may begin with `*` (repeated), `{` (a map from
# names) or `|` (an alternative).
MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live bool 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready bool 1",
    "ModelReadyRequest": "name string 1, version string 2",
    "ModelReadyResponse": "ready bool 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name string 1, version string 2, extensions *string 3",
    "ModelMetadataRequest": "name string 1, version string 2",
    "ModelMetadataResponse": "name string 1, versions *string 2, platform string 3, "
    "inputs *TensorMetadata 4, outputs *TensorMetadata 5",
    "TensorMetadata": "name string 1, datatype string 2, shape *int64 3",
    "InferParameter": "bool_param |bool 1, int64_param |int64 2, string_param |string 3, "
    "double_param |double 4, uint64_param |uint64 5",
    "InferTensorContents": "bool_contents *bool 1, int_contents *int32 2, "
    "int64_contents *int64 3, uint_contents *uint32 4, uint64_contents *uint64 5, "
    "fp32_contents *float 6, fp64_contents *double 7, bytes_contents *bytes 8",
    "InputTensor": "name string 1, datatype string 2, shape *int64 3, "
    "parameters {InferParameter 4, contents InferTensorContents 5",
    "RequestedOutput": "name string 1, parameters {InferParameter 2",
    "ModelInferRequest": "model_name string 1, model_version string 2, id string 3, "
    "parameters {InferParameter 4, inputs *InputTensor 5, outputs *RequestedOutput 6, "
    "raw_input_contents *bytes 7",
    "OutputTensor": "name string 1, datatype string 2, shape *int64 3, "
    "parameters {InferParameter 4, contents InferTensorContents 5",
    "ModelInferResponse": "model_name string 1, model_version string 2, id string 3, "
    "parameters {InferParameter 4, outputs *OutputTensor 5, raw_output_contents *bytes 6",
}


def build_messages() -> dict[str, Any]:
    """Build the message classes by name, in a pool of their own."""
    file = descriptor_pb2.FileDescriptorProto(
        name="open_inference.proto", package=PACKAGE, syntax="proto3"
    )
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in filter(None, fields.split(", ")):
            _add_field(message, *text.split(" "))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in MESSAGES
    }


def _add_field(message: descriptor_pb2.DescriptorProto, name: str, kind: str, number: str) -> None:
    """Add a field to a message; a map is a repeated message of a key and a value."""
    field = message.field.add(name=name, number=int(number), label=Field.LABEL_OPTIONAL)
    if kind.startswith("|"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="choice")
        field.oneof_index = 0
    if kind.startswith(("*", "{")):
        field.label = Field.LABEL_REPEATED
    if kind.startswith("{"):
        entry = message.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        _add_field(entry, "key", "string", "1")
        _add_field(entry, "value", kind[1:], "2")
        field.type = Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{message.name}.ParametersEntry"
        return
    plain = kind.lstrip("*|")
    if plain in SCALARS:
        field.type = SCALARS[plain]
    else:
        field.type = Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{plain}"
