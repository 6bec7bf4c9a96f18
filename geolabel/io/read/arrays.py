"""Scenes from xarray: arrays of bands and datasets of named bands, in memory or lazy (dask)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from affine import Affine

from geolabel.errors import SceneError
from geolabel.io.read.headers import Header, chosen_time, to_pyproj
from geolabel.tiles import Window
from geolabel.types import AnyArray, BoolArray

if TYPE_CHECKING:
    import xarray

    Labelled: TypeAlias = xarray.DataArray | xarray.Dataset

PLACES = (("lat", "lon"), ("northing", "easting"), ("row", "col"))
"""Names of row and column dimensions that rioxarray does not recognise."""

TIMES = ("time", "times", "date", "datetime", "t")


class ArraySource:
    """A DataArray or Dataset with rioxarray's conventions, computed in the thread that reads it.

    Bands are an axis of the array, or the variables of the dataset that have rows and columns. A time axis of length 1
    is dropped, and its date becomes the scene's. If there are several times, `time` selects one: an ISO 8601 date or
    date and time, or a prefix of one that is unique.

    Raises
    ------
    SceneError
        If rows and columns cannot be found, or other axes or several times remain.
    """

    def __init__(self, data: Labelled, time: str | None = None) -> None:
        import rioxarray  # noqa: F401 - registers the accessor that knows dimensions, CRS and nodata

        data = data if time is None else _at_time(data, time)
        arrays = _variables(data)
        self.data = data
        self._parts = tuple(_bands_first(_in_plane(array)) for array in arrays.values())
        self._names = None if len(arrays) == 1 else tuple(arrays)
        self._name = str((getattr(data, "name", None) if self._names is None else None) or "array")

    @cached_property
    def header(self) -> Header:
        """Header of the array."""
        first = self._parts[0]
        height, width = first.shape[1:]
        names = _band_names(first) if self._names is None else self._variable_names()
        return Header(
            name=self._name,
            height=height,
            width=width,
            crs=to_pyproj(self._crs(), self._name),
            transform=_array_transform(first),
            dtypes=tuple(str(part.dtype) for part in self._parts for _ in range(len(part))),
            nodata=tuple(_nodata(part) for part in self._parts for _ in range(len(part))),
            descriptions=names,
            colours=("undefined",) * len(names),
            masked=(False,) * len(names),
            tags={key: value for key, value in self.data.attrs.items() if isinstance(value, str)} | _date(self.data),
        )

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """An array has no overviews."""
        return ((self.header.height, self.header.width),)

    def read(self, bands: Sequence[int], window: Window, level: int = 0) -> tuple[AnyArray, BoolArray]:
        """Values (B, h, w); an array has no mask, so all of them are valid."""
        assert level == 0, "an array has no overviews"
        return self._compute([band - 1 for band in bands], *window.slices)

    def decimate(self, bands: Sequence[int], height: int, width: int) -> tuple[AnyArray, BoolArray]:
        """The whole array at another size, by nearest neighbour, as GDAL decimates."""
        rows = (2 * np.arange(height) + 1) * self.header.height // (2 * height)
        cols = (2 * np.arange(width) + 1) * self.header.width // (2 * width)
        return self._compute([band - 1 for band in bands], rows, cols)

    def close(self) -> None:
        """Nothing was opened."""

    def _compute(
        self, bands: Sequence[int], rows: slice | AnyArray, cols: slice | AnyArray
    ) -> tuple[AnyArray, BoolArray]:
        wanted = [*bands, *(band - 1 for band in self.header.alpha)]
        # Synchronous: a thread pool inside a task would use cores assigned to other tasks.
        if len(self._parts) == 1:
            values = np.asarray(self._parts[0][wanted, rows, cols].compute(scheduler="synchronous").values)
        else:
            parts = [self._parts[band][0, rows, cols].compute(scheduler="synchronous").values for band in wanted]
            values = np.stack(parts)
        return values[: len(bands)], np.all(values[len(bands) :] > 0, axis=0)

    def _variable_names(self) -> tuple[str | None, ...]:
        """Names of variables, or their long names if rioxarray only numbered them."""
        assert self._names is not None
        counted = all(str(name).startswith("band_") for name in self._names)
        words = [part.attrs.get("long_name") for part in self._parts]
        return tuple(
            str(word) if counted and word else str(name) for name, word in zip(self._names, words, strict=True)
        )

    def _crs(self) -> Any:
        return next((crs for one in (self.data, *self._parts) if (crs := one.rio.crs) is not None), None)


def _at_time(data: Labelled, wanted: str) -> Labelled:
    """Select one time of an array or dataset.

    Raises
    ------
    SceneError
        If it has no time axis, or no such time.
    """
    dim = next((dim for dim in data.dims if _is_time(data, dim)), None)
    if dim is None or dim not in data.coords:
        raise SceneError(
            f"time {wanted}: the array has no time axis with coordinates, only {tuple(data.dims)}; omit the time, "
            "or select by index, such as array.isel(time=0)"
        )
    times = _times(data, dim)
    return data.isel({dim: times.index(chosen_time(wanted, times, "the array"))})


def _times(data: Labelled, dim: Hashable) -> list[str]:
    """Labels of a time axis: ISO 8601 to the second."""
    values = data.coords[dim].values
    named = np.datetime_as_string(values, unit="s") if values.dtype.kind == "M" else values
    return [str(value) for value in named.reshape(-1)]


def _variables(data: Labelled) -> dict[Hashable, xarray.DataArray]:
    """The two-dimensional band arrays: one array with several bands, or one array per variable."""
    import xarray

    if isinstance(data, xarray.DataArray):
        return {data.name: _placed(data)}
    arrays = {name: _placed(array) for name, array in data.data_vars.items() if array.dtype.kind in "biuf"}
    arrays = {name: array for name, array in arrays.items() if _plane(array) is not None}
    if not arrays:
        known = ", ".join(map(str, data.data_vars)) or "nothing"
        raise SceneError(
            f"the dataset has no variable of rows and columns, only {known}: name these dimensions y and x"
        )
    sizes = {array.rio.shape for array in arrays.values()}
    if len(sizes) > 1:
        listed = ", ".join(f"{name} of {array.rio.height} x {array.rio.width} px" for name, array in arrays.items())
        raise SceneError(f"the variables of the dataset differ in size ({listed}): choose those of one grid")
    if len(arrays) > 1:
        for name, array in arrays.items():
            if len(_extra(_in_plane(array))) > 0:
                raise SceneError(
                    f"variable {name} of the dataset has dimensions {array.dims}, and is one of {len(arrays)}: select "
                    f"one variable, such as dataset[{name!r}], or one index of each other dimension"
                )
    return arrays


def _placed(array: xarray.DataArray) -> xarray.DataArray:
    """The array with spatial dimensions that rioxarray finds."""
    known = next((pair for pair in PLACES if set(pair) <= set(array.dims) and not {"y", "x"} & set(array.coords)), None)
    return array if known is None else array.rename(dict(zip(known, ("y", "x"), strict=True)))


def _plane(array: xarray.DataArray) -> tuple[Hashable, Hashable] | None:
    """Row and column dimensions, or None."""
    try:
        return array.rio.y_dim, array.rio.x_dim
    except Exception:  # noqa: BLE001  # rioxarray raises several classes, all about dimensions
        return None


def _in_plane(array: xarray.DataArray) -> xarray.DataArray:
    """The array without axes of length 1, such as a single time; bands, rows and columns remain."""
    plane = _plane(array)
    if plane is None:
        raise SceneError(f"the array's dimensions {array.dims} are not rows and columns: name them y and x")
    others = [dim for dim in array.dims if dim not in plane]
    times = [dim for dim in others if _is_time(array, dim)]
    for dim in times:
        if array.sizes[dim] != 1:
            first = _times(array, dim)[0] if dim in array.coords else None
            way = f"array.isel({dim}=0)" if first is None else f"time={first!r}"
            raise SceneError(
                f"the array has {array.sizes[dim]} times along {dim!r}, but a scene has one: select one, such as {way}"
                ", or process them one by one"
            )
    single = times + [dim for dim in others if dim not in times and array.sizes[dim] == 1]
    while len(others) > 1 and single:
        dim = single.pop(0)
        array, others = array.squeeze(dim), [other for other in others if other != dim]
    if times and others == times:
        array, others = array.squeeze(times[0]), []
    if len(others) > 1:
        raise SceneError(
            f"the array has dimensions {array.dims}: choose one of {others[1:]}, so that bands, y, x remain"
        )
    return array


def _is_time(array: Labelled, dim: Hashable) -> bool:
    return str(dim).lower() in TIMES or (dim in array.coords and array.coords[dim].dtype.kind in "mM")


def _extra(array: xarray.DataArray) -> list[Hashable]:
    return [dim for dim in array.dims if dim not in (array.rio.y_dim, array.rio.x_dim)]


def _bands_first(array: xarray.DataArray) -> xarray.DataArray:
    others, plane = _extra(array), (array.rio.y_dim, array.rio.x_dim)
    return array.transpose(*others, *plane) if others else array.expand_dims("band").transpose("band", *plane)


def _band_names(stack: xarray.DataArray) -> tuple[str | None, ...]:
    """Names of the bands along the first axis, from its labels or the array's attributes."""
    count = len(stack)
    labels = stack[stack.dims[0]].values if stack.dims[0] in stack.coords else np.arange(count)
    if labels.dtype.kind in "UO" and labels.shape == (count,):  # band names as coordinates, as in STAC readers
        return tuple(map(str, labels))
    names = stack.attrs.get("long_name", stack.attrs.get("descriptions"))
    if isinstance(names, str) and count == 1:
        return (names,)
    if isinstance(names, str) or names is None or len(names) != count:
        return (None,) * count
    return tuple(names)


def _nodata(array: xarray.DataArray) -> float | None:
    try:
        nodata = array.rio.nodata
    except OverflowError:  # inherited from another dtype; this one cannot hold it
        return None
    return None if nodata is None else float(nodata)


def _date(data: Labelled) -> dict[str, str]:
    """Date of an array with a single time."""
    for name in data.coords:
        coordinate = data.coords[name]
        if coordinate.dtype.kind == "M" and coordinate.size == 1:
            value = coordinate.values.reshape(-1)[0]
            return {} if np.isnat(value) else {"ACQUISITION_DATE": str(np.datetime64(value, "D"))}
    return {}


def _array_transform(array: xarray.DataArray) -> Affine | None:
    """The transform stored in the array, unless its coordinates show that it was cropped or thinned since."""
    mapping = array.coords.get(array.rio.grid_mapping)
    text = "" if mapping is None else str(mapping.attrs.get("GeoTransform", ""))
    stored = Affine.from_gdal(*map(float, text.split())) if text else None
    known = dict(array.coords)  # without default coordinates, which xarray counts from 0
    axes = [known.get(dim) for dim in (array.rio.x_dim, array.rio.y_dim)]
    if any(axis is None or axis.size < 2 for axis in axes):
        transform = stored
    else:
        xs, ys = (np.asarray(axis.values, float) for axis in axes if axis is not None)
        transform = _spaced(xs, ys)
        if stored is not None and transform.almost_equals(stored, 1e-3 * abs(transform.determinant) ** 0.5):
            transform = stored  # the coordinates are rounded, the stored transform is exact
    return None if transform is None or transform.is_identity else transform


def _spaced(xs: AnyArray, ys: AnyArray) -> Affine:
    step_x, step_y = ((axis[-1] - axis[0]) / (axis.size - 1) for axis in (xs, ys))
    for dim, axis, step in (("x", xs, step_x), ("y", ys, step_y)):
        if step == 0 or np.abs(np.diff(axis) - step).max() > 0.1 * abs(step):
            raise SceneError(
                f"the coordinates along {dim} are not evenly spaced: interpolate the array to a regular grid first"
            )
    return Affine(step_x, 0, xs[0] - step_x / 2, 0, step_y, ys[0] - step_y / 2)
