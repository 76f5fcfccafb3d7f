"""CIFAR-10's python batches: pickles, which are read here as data, without running what they say.

A pickle is a program for a small stack machine. The one below knows the few instructions that build dicts, lists,
numbers, strings and numpy's uint8 arrays; it imports and calls nothing. Whatever else a file asks for is refused.
"""

import io
import pickletools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_core.artifacts.manifest import Split
from ddpm_core.data.sources.base import ArraySource, Listing, checked_labels, class_counts
from ddpm_core.data.sources.splits import set_aside
from ddpm_core.errors import InputError

BATCH_NAME = re.compile(r"(^|/)(data_batch_\d+|test_batch)$")
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PLAIN = frozenset(
    {"INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)
_BYTES = frozenset({"BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"})
_PUT = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GET = frozenset({"GET", "BINGET", "LONG_BINGET"})
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MAX_DIMENSIONS = 4
_MAX_SIZE = 1 << 40
_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")


@dataclass(frozen=True)
class _Name:
    """Something that the pickle would import."""

    full: str


@dataclass
class _Object:
    """An array or a dtype that the pickle would make: its maker's arguments, and the state that it is given."""

    kind: str
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass
class _Machine:
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("its stack is empty")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken


def read_plain_pickle(data: bytes) -> Any:
    """What a pickle of dicts, lists, tuples, numbers, strings and uint8 arrays holds; nothing in it is run.

    Python 2 strings are returned as bytes.

    Raises:
        InputError: if it asks for anything else, or is damaged.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            if opcode.name == "STOP":
                return _finished(machine.pop(1)[0])
            _step(machine, opcode.name, argument)
    except (IndexError, KeyError, TypeError, UnicodeDecodeError, OverflowError) as error:
        raise InputError(f"damaged pickle: {error}") from None
    raise InputError("damaged pickle: it does not end")


def _step(machine: _Machine, name: str, argument: Any) -> None:
    """One instruction."""
    stack = machine.stack
    if name in _PLAIN:
        stack.append(argument)
    elif name in _BYTES:
        stack.append(argument.encode("latin-1") if isinstance(argument, str) else argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in ("EMPTY_DICT", "EMPTY_LIST"):
        stack.append({} if name == "EMPTY_DICT" else [])
    elif name in _TUPLES:
        stack.append(tuple(machine.pop(_TUPLES[name])))
    elif name in ("TUPLE", "LIST"):
        stack.append(tuple(machine.since_mark()) if name == "TUPLE" else machine.since_mark())
    elif name == "MARK":
        machine.marks.append(len(stack))
    elif name in _PUT:
        machine.memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        machine.memo[len(machine.memo)] = stack[-1]
    elif name in _GET:
        stack.append(machine.memo[argument])
    elif name in ("APPEND", "APPENDS"):
        items = machine.since_mark() if name == "APPENDS" else machine.pop(1)
        _expect(stack[-1], list).extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = machine.since_mark() if name == "SETITEMS" else machine.pop(2)
        # Not tuples: one that holds another twice, and so on forty times over, takes days to hash.
        keys = [key if isinstance(key, str | bytes | int) else _expect(key, str) for key in items[::2]]
        _expect(stack[-1], dict).update(zip(keys, items[1::2], strict=True))
    elif name not in ("PROTO", "FRAME"):
        _object_step(machine, name, argument)


def _object_step(machine: _Machine, name: str, argument: Any) -> None:
    """The instructions that would import, call and fill in; here they only take down what was asked for."""
    if name == "GLOBAL":
        machine.stack.append(_Name(argument.replace(" ", ".")))
    elif name == "STACK_GLOBAL":
        machine.stack.append(_Name(".".join(_expect(part, str) for part in machine.pop(2))))
    elif name == "REDUCE":
        maker, arguments = machine.pop(2)
        machine.stack.append(_Object(_kind(maker), _expect(arguments, tuple)))
    elif name == "BUILD":
        (state,) = machine.pop(1)
        _expect(machine.stack[-1], _Object).state = state
    else:
        raise InputError(f"refused: the pickle uses {name}, which CIFAR-10's files do not need")


def _kind(maker: Any) -> str:
    if isinstance(maker, _Name) and maker.full in [f"{module}._reconstruct" for module in _ARRAY_MODULES]:
        return "array"
    if isinstance(maker, _Name) and maker.full == "numpy.dtype":
        return "dtype"
    what = maker.full if isinstance(maker, _Name) else type(maker).__name__
    raise InputError(f"refused: the pickle wants to call {what}; expected numpy arrays of uint8 and plain values only")


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise InputError(f"damaged pickle: {type(value).__name__} where {kind.__name__} was expected")
    return value


def _finished(value: Any) -> Any:
    """The value with its arrays made; they stand alone or as values of the outermost dict."""
    if isinstance(value, dict):
        return {name: _array(item) if isinstance(item, _Object) else item for name, item in value.items()}
    return _array(value) if isinstance(value, _Object) else value


def _array(described: _Object) -> NDArray[np.uint8]:
    _, shape, dtype, fortran, data = _expect(described.state, tuple)
    if not isinstance(dtype, _Object) or dtype.kind != "dtype" or dtype.arguments[0] not in ("u1", b"u1"):
        raise InputError("refused: the pickle holds an array of another type; expected uint8")
    sizes = _expect(shape, tuple)
    if len(sizes) > _MAX_DIMENSIONS or not all(isinstance(size, int) and 0 <= size <= _MAX_SIZE for size in sizes):
        raise InputError("damaged pickle: an array whose shape is none")
    if fortran or not isinstance(data, bytes) or len(data) != int(np.prod(shape, dtype=object)):
        raise InputError(f"damaged pickle: an array of shape {shape} whose bytes do not fit")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def open_batches(batches: Sequence[tuple[str, bytes]], class_names: Sequence[str] = CLASS_NAMES) -> ArraySource:
    """The images of some batches, by name, training before test; names are `cifar-10#0` and on."""
    ordered = sorted(batches, key=lambda batch: ("test" in batch[0], batch[0]))
    read = [_read_batch(name, data) for name, data in ordered]
    labels = np.concatenate([labels for _, labels in read])
    images = np.concatenate([images for images, _ in read])
    splits: list[Split] = []
    for (name, _), (rows, _) in zip(ordered, read, strict=True):
        splits += ["test" if "test" in name else "train"] * len(rows)
    return ArraySource(
        images=images,
        labels=labels,
        class_names=tuple(class_names),
        stem="cifar-10",
        own_splits=set_aside(splits),
        listing=Listing(
            labels="labels of the batches",
            splits="its test batch" if "test" in splits else "none of its own",
            class_counts=class_counts(labels, len(class_names)),
        ),
    )


def _read_batch(name: str, data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        batch = _expect(read_plain_pickle(data), dict)
        fields = {key if isinstance(key, bytes) else str(key).encode(): value for key, value in batch.items()}
        missing = [key.decode() for key in (b"data", b"labels") if key not in fields]
        if missing:
            raise InputError(f"it has no {' and no '.join(missing)}")
        rows, labels = fields[b"data"], fields[b"labels"]
    except ValueError as error:
        raise InputError(f"{Path(name).name} is not one of CIFAR-10's batches: {error}") from None
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise InputError(f"{Path(name).name} is not one of CIFAR-10's batches: its labels are no list of integers")
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != 3072:
        raise InputError(f"{Path(name).name} is not one of CIFAR-10's batches: its data is not an array [n, 3072]")
    checked = checked_labels(labels, len(rows), name)
    if len(checked) and checked.max() >= len(CLASS_NAMES):
        raise InputError(f"{Path(name).name} has the label {checked.max()}; expected 0 to {len(CLASS_NAMES) - 1}")
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), checked
