"""Array types, and checks of values against annotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

BoolArray: TypeAlias = NDArray[np.bool_]
UInt8Array: TypeAlias = NDArray[np.uint8]
UInt16Array: TypeAlias = NDArray[np.uint16]
Int8Array: TypeAlias = NDArray[np.int8]
Int32Array: TypeAlias = NDArray[np.int32]
Int64Array: TypeAlias = NDArray[np.int64]
Float32Array: TypeAlias = NDArray[np.float32]
Float64Array: TypeAlias = NDArray[np.float64]
AnyArray: TypeAlias = NDArray[Any]


def of_kind(value: Any, kind: Any) -> bool:
    """Whether a value matches an annotation, down to the dtype of arrays and the fields of dataclasses.

    Supports plain values, None, ``Any``, unions, ``Literal``, lists, tuples, mappings, arrays of `geolabel.types` and
    dataclasses. An int is accepted as a float; a bool is not a number.

    Examples
    --------
    >>> of_kind([(1, 2.5)], list[tuple[int, float]]), of_kind([(True, 2.5)], list[tuple[int, float]])
    (True, False)
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or isinstance(kind, TypeVar):
        return True
    if origin in (Union, UnionType):
        return any(of_kind(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin is np.ndarray:
        (scalar,) = get_args(inner[1])
        return isinstance(value, np.ndarray) and (scalar is Any or issubclass(value.dtype.type, scalar))
    if origin is tuple:
        return isinstance(value, tuple) and _all_of_kind(value, inner)
    if origin is list:
        return isinstance(value, list) and all(of_kind(item, inner[0]) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            of_kind(k, inner[0]) and of_kind(v, inner[1]) for k, v in value.items()
        )
    if is_dataclass(kind):
        return isinstance(value, kind) and all(of_kind(getattr(value, n), k) for n, k in hints(kind).items())  # type: ignore[arg-type]
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, NoneType if kind is None else kind)


def depth(value: Any) -> int:
    """Nesting depth of mappings and lists, as in JSON."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return 1 + max(map(depth, inner), default=0)


def _all_of_kind(values: tuple[Any, ...], kinds: tuple[Any, ...]) -> bool:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return all(of_kind(value, kinds[0]) for value in values)
    return len(values) == len(kinds) and all(of_kind(v, k) for v, k in zip(values, kinds, strict=True))


@lru_cache(maxsize=128)
def hints(annotated: type | Callable[..., Any]) -> dict[str, Any]:
    """Resolved annotations of a class or a function."""
    return get_type_hints(annotated)
