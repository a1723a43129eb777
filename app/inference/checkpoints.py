"""Recognise files of weights and pickles, which hold no network that can be served."""

import warnings
import zipfile
from pathlib import Path

import torch

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
