"""Reading weight files of any origin without running code that they bring.

======================  ==========================================================================================
``.safetensors``        tensors and nothing else
``.npz``                NumPy arrays by name, read with ``allow_pickle=False``
``.pkl`` (Caffe2)       PySlowFast's published files: a pickle of ``{"blobs": {name: array}}``. Its own reader, which
                        knows how to make NumPy arrays and nothing besides
any other               PyTorch's, with ``weights_only=True``
======================  ==========================================================================================

PyTorch's restricted reader refuses every class that it does not know. A training framework's checkpoint often holds
a few that are harmless beside the weights, and these are let through: NumPy scalars and arrays (a best accuracy), and
MMEngine's history of logged values, in whose place an inert stand-in is made, as for the functions it refers to.
"""

import codecs
import pickle
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


_scalar, _reconstruct = np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]
# NumPy 1 and 2 write different module names.
_NUMPY: dict[str, Any] = {
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
}
_DTYPES = [type(np.dtype(kind)) for kind in ("bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")]
# MMEngine pickles its buffers with references to their methods, getattr(HistoryBuffer, "mean"): github.com/open-mmlab/
# mmengine, mmengine/logging/history_buffer.py, 314a31342aa8c4e145424ccaae36a95dbd47085c, and its issue 1655.
_MMENGINE = dict.fromkeys(
    ("mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "__builtin__.getattr"), _Inert
)


def read_weight_file(path: str | Path) -> FileContent:
    """The tensors of a weight file, and the names of what stands beside them.

    Raises:
        ValueError: if the file is missing, damaged, holds no tensors, or is a pickle that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such weight file")
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
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path}: holds no state dict, a mapping of names to tensors")
    return FileContent(content, beside)


def _pytorch(path: Path) -> Any:
    allowed: list[Any] = [(value, name) for name, value in {**_NUMPY, **_MMENGINE}.items()]
    try:
        with torch.serialization.safe_globals([*allowed, *_DTYPES]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, for it is a pickle that would run code or is no weight file; save the state dict "
            "alone, as safetensors or with torch.save(model.state_dict(), ...)"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a readable PyTorch file ({error}); fetch or write it again") from error


def _arrays(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: not a readable archive of plain arrays ({error}); write it with numpy.savez, without objects"
        ) from error


class _ArrayUnpickler(pickle.Unpickler):
    """Makes dictionaries, lists, numbers, strings and NumPy arrays, and refuses the rest."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _NUMPY:
            return _NUMPY[full]
        if full == "_codecs.encode":  # how Python 2's byte strings are written
            return _encode_latin1
        raise pickle.UnpicklingError(f"it refers to {full}")


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes as {encoding}")
    return codecs.encode(text, "latin1")


def _caffe2(path: Path) -> dict[str, Tensor] | None:
    """The arrays of a Caffe2 file, or None if it is none: PyTorch files bear that suffix too."""
    if zipfile.is_zipfile(path):
        return None
    try:
        with path.open("rb") as stream:
            content = _ArrayUnpickler(stream, encoding="latin1").load()
    except Exception:  # whatever a damaged or foreign pickle raises; PyTorch's reader will say what is wrong with it
        return None
    blobs = content.get("blobs") if isinstance(content, dict) else None
    if not isinstance(blobs, dict):
        return None
    return {
        str(name): torch.from_numpy(np.array(value))
        for name, value in blobs.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
    }
