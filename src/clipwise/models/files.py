"""Reading weight files of any origin without running code that they bring.

======================  ==========================================================================================
``.safetensors``        tensors and nothing else
``.npz``                NumPy arrays by name, read with ``allow_pickle=False``
``.pkl`` (Caffe2)       PySlowFast's published files: a pickle of ``{"blobs": {name: array}}``. Its own reader, which
                        knows how to take numbers from NumPy's arrays and nothing besides
any other               PyTorch's, with ``weights_only=True``
======================  ==========================================================================================

PyTorch's restricted reader refuses every class that it does not know. A training framework's checkpoint often holds
a few that are harmless beside the weights, and these are let through as inert stand-ins: NumPy scalars and arrays (a
best accuracy), MMEngine's history of logged values, and the functions it refers to.

No pickle gets hold of NumPy itself: its ``dtype`` takes any state from a pickle, one that has numbers read as addresses
of objects included.
"""

import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["FileContent", "read_weight_file"]

_NESTED = ("state_dict", "model_state", "model")
"""Where a checkpoint may keep its weights: most projects, PySlowFast, torchvision's training scripts."""


@dataclass(frozen=True)
class FileContent:
    """What a weight file holds."""

    tensors: dict[str, Tensor]
    beside: tuple[str, ...]
    """Names of what stands beside the weights: optimiser, epoch …"""


class _Inert:
    """Stands for an object or a function of a framework that is not here; keeps nothing, does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


# NumPy 1 and 2 write different module names.
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_NUMPY = (
    *_RECONSTRUCT,
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
)
# MMEngine pickles its buffers with references to their methods, getattr(HistoryBuffer, "mean"): github.com/open-mmlab/
# mmengine, mmengine/logging/history_buffer.py, 314a31342aa8c4e145424ccaae36a95dbd47085c, and its issue 1655.
_MMENGINE = ("mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "__builtin__.getattr")


def read_weight_file(path: str | Path) -> FileContent:
    """The tensors of a weight file, and the names of what stands beside them.

    Raises:
        ValueError: if the file is missing, damaged, holds no tensors, or is a pickle that would run code.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder; give a weight file in it"
        if not path.is_dir():
            what = (
                "no such weight file; if a training is to write it, as `clipwise recipes NAME` says under Start, run "
                "that first, or give another file by --set model.weights=PATH"
            )
        raise ValueError(f"{path}: {what}")
    if path.suffix == ".safetensors":
        try:
            return FileContent(load_file(path), ())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error}); fetch or write it again") from error
    if path.suffix == ".npz":
        return FileContent(_arrays(path), ())
    content: Any = _caffe2(path) if path.suffix == ".pkl" else None
    if content is None:
        content = _pytorch(path)
    beside: tuple[str, ...] = ()
    for name in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            beside = tuple(str(key) for key in content if key != name)
            content = content[name]
            break
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: holds no state dict, a mapping of names to tensors, but a {type(content).__name__}")
    if others := [f"{key} ({type(v).__name__})" for key, v in content.items() if not isinstance(v, Tensor)]:
        raise ValueError(
            f"{path}: holds no state dict, a mapping of names to tensors: {', '.join(others[:3])}; save it alone, or "
            f"under {' or '.join(_NESTED)}"
        )
    odd = [key for key, v in content.items() if v.layout != torch.strided or v.is_meta or v.is_quantized]
    odd += [key for key, v in content.items() if v.is_complex()]
    if odd:
        raise ValueError(f"{path}: {odd[0]} is sparse, quantised, complex or without values; save dense real tensors")
    return FileContent(content, beside)


def _pytorch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in (*_NUMPY, *_MMENGINE)]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, for it is a pickle that would run code or is no weight file; save the state dict "
            "alone, as safetensors or with torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:  # a damaged pickle can make the reader raise anything
        raise ValueError(f"{path}: not a readable PyTorch file ({error!r}); fetch or write it again") from error


def _arrays(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:  # as above
        raise ValueError(
            f"{path}: not a readable archive of plain arrays ({error!r}); write it with numpy.savez, without objects"
        ) from error


class _Dtype:
    """Stands for ``numpy.dtype``: numbers only."""

    def __init__(self, kind: str, *_: object) -> None:
        if not re.fullmatch(r"[fiu][1248]", kind):
            raise pickle.UnpicklingError(f"it holds an array of {kind}")
        self.kind = kind

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.kind = {"<": "<", ">": ">"}.get(state[1], "=") + self.kind[-2:]


class _Array:
    """Stands for ``numpy.ndarray``."""

    value: "np.ndarray[Any, Any]"

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, data = state
        data = data.encode("latin1") if isinstance(data, str) else data  # Python 2's byte strings
        self.value = np.frombuffer(data, dtype.kind).reshape(shape, order="F" if by_columns else "C")


class _ArrayUnpickler(pickle._Unpickler):
    """Makes dictionaries, lists, numbers, strings and arrays of numbers, and refuses the rest.

    Python's own unpickler in place of C's, which reserves whatever memory an index in the file asks for.
    """

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full == "numpy.dtype":
            return _Dtype
        if full in (*_RECONSTRUCT, "numpy.ndarray"):
            return _Array
        if full in _NUMPY:
            return _Inert
        if full == "_codecs.encode":  # how Python 3 writes byte strings in protocol 2
            return str.encode
        raise pickle.UnpicklingError(f"it refers to {full}")


def _caffe2(path: Path) -> dict[str, Tensor] | None:
    """The arrays of a Caffe2 file, or None if it is none: PyTorch files bear that suffix too."""
    if zipfile.is_zipfile(path):
        return None
    try:
        with path.open("rb") as stream:
            content = _ArrayUnpickler(stream, encoding="latin1").load()
        blobs = content["blobs"]
        return {str(name): _tensor(blob.value) for name, blob in blobs.items() if isinstance(blob, _Array)}
    except Exception:  # whatever a damaged or foreign pickle raises; PyTorch's reader will say what is wrong with it
        return None


def _tensor(value: "np.ndarray[Any, Any]") -> Tensor:
    return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
