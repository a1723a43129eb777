"""Recognise files of weights and pickles, which hold no network that can be served."""

import warnings
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from app.errors import ArgumentError

PICKLE = b"\x80"  # first byte of every pickle since protocol 2
HDF5 = b"\x89HDF"
SAFETENSORS = b'{"'  # after eight bytes with the length of the header

ADVICE = "export the network with torch.onnx.export"


def describe_checkpoint(path: Path) -> str | None:
    """Return the kind of a file of weights or of a pickle with advice; None for any other file.

    No code of the file is run: a pickle is read with torch's `weights_only`.
    """
    with path.open("rb") as file:
        start = file.read(10)
    if start[8:] == SAFETENSORS:
        return f"weights without their network (safetensors): {ADVICE}"
    if start.startswith(HDF5):
        return f"an HDF5 file, as of Keras: {ADVICE.replace('torch.onnx.export', 'tf2onnx')}"
    if start.startswith(PICKLE) or _is_torch_save(path):
        return _describe_pickle(path)
    return None


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file of weights by name: of torch.save, or safetensors.

    A `state_dict` or `model` inside is unpacked, and the prefix `module.` removed. No code of the
    file is run. Raises ArgumentError for a file without tensors, or with objects.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch and safetensors raise depends on the content
        raise ArgumentError(
            f"expected a state_dict, as of torch.save(network.state_dict(), path), got "
            f"{path.name}: {str(error).splitlines()[0][:200]}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {
        str(key).removeprefix("module."): value
        for key, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise ArgumentError(f"expected a state_dict, got {path.name} without tensors by name")
    return tensors


def _is_torch_save(path: Path) -> bool:
    """Return whether a file was written by torch.save: TorchScript has constants as well."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    return "data.pkl" in names and "constants.pkl" not in names


def _describe_pickle(path: Path) -> str:
    """Return the kind of a pickle: tensors alone, or objects, whose code would be run."""
    try:
        with warnings.catch_warnings():  # of newer pickles
            warnings.simplefilter("ignore", UserWarning)
            torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # what torch raises depends on the content
        return f"a pickle of objects, which is code and is not loaded: {ADVICE}"
    return f"weights without their network (a state_dict): {ADVICE}"
