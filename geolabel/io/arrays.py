"""Scenes that are DataArrays, in memory or behind dask."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine

from geolabel.errors import SceneError
from geolabel.io.headers import Header, to_pyproj
from geolabel.tiles import Window
from geolabel.types import AnyArray, BoolArray

if TYPE_CHECKING:
    import xarray


class ArraySource:
    """A DataArray with rioxarray's conventions, in memory or behind dask, computed in the thread that reads."""

    def __init__(self, array: xarray.DataArray) -> None:
        import rioxarray  # noqa: F401 - registers the accessor that knows dimensions, CRS and nodata

        try:
            y, x = array.rio.y_dim, array.rio.x_dim
        except Exception as cause:  # rioxarray has several, all of them about dimensions
            raise SceneError(
                f"the array's dimensions {array.dims} are not rows and columns: name them y and x"
            ) from cause
        others = [dim for dim in array.dims if dim not in (y, x)]
        if len(others) > 1:
            raise SceneError(
                f"the array has dimensions {array.dims}: choose one of {others[1:]}, so that bands, y, x remain"
            )
        self.array = array
        self._bands_first = (
            array.transpose(*others, y, x) if others else array.expand_dims("band").transpose("band", y, x)
        )

    @cached_property
    def header(self) -> Header:
        """What the array says of itself."""
        return _array_header(self.array, self._bands_first)

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """An array has no overviews."""
        return ((self.header.height, self.header.width),)

    def read(self, bands: Sequence[int], window: Window, level: int = 0) -> tuple[AnyArray, BoolArray]:
        """Values (B, h, w); an array has no mask, so everything is valid."""
        assert level == 0, "an array has no overviews"
        return self._compute([band - 1 for band in bands], *window.slices)

    def decimate(self, bands: Sequence[int], height: int, width: int) -> tuple[AnyArray, BoolArray]:
        """The whole array at another size, each pixel picked from the nearest one, as GDAL picks it."""
        rows = (2 * np.arange(height) + 1) * self.header.height // (2 * height)
        cols = (2 * np.arange(width) + 1) * self.header.width // (2 * width)
        return self._compute([band - 1 for band in bands], rows, cols)

    def close(self) -> None:
        """Nothing was opened."""

    def _compute(
        self, bands: Sequence[int], rows: slice | AnyArray, cols: slice | AnyArray
    ) -> tuple[AnyArray, BoolArray]:
        wanted = [*bands, *(band - 1 for band in self.header.alpha)]
        part = self._bands_first[wanted, rows, cols]
        # In this thread: a pool of its own inside a task of the run would take cores that others count on.
        values = np.asarray(part.compute(scheduler="synchronous").values)
        return values[: len(bands)], np.all(values[len(bands) :] > 0, axis=0)


def _array_header(array: xarray.DataArray, stack: xarray.DataArray) -> Header:
    count, height, width = stack.shape
    names = array.attrs.get("long_name", array.attrs.get("descriptions"))
    labels = stack[stack.dims[0]].values if stack.dims[0] in stack.coords else np.arange(count)
    if labels.dtype.kind in "UO":  # band names as coordinates, as STAC readers give them
        names = tuple(map(str, labels))
    elif isinstance(names, str) or names is None or len(names) != count:
        names = (names,) * count if count == 1 and isinstance(names, str) else (None,) * count
    name = str(array.name or "array")
    try:
        nodata = array.rio.nodata
    except OverflowError:  # left over from another dtype, which this one cannot hold
        nodata = None
    return Header(
        name=name,
        height=height,
        width=width,
        crs=to_pyproj(array.rio.crs, name),
        transform=_array_transform(array),
        dtypes=(str(stack.dtype),) * count,
        nodata=(None if nodata is None else float(nodata),) * count,
        descriptions=tuple(names),
        colours=("undefined",) * count,
        masked=(False,) * count,
        tags={key: value for key, value in array.attrs.items() if isinstance(value, str)},
    )


def _array_transform(array: xarray.DataArray) -> Affine | None:
    """The transform that the array carries, unless its coordinates say that it was cut or thinned since."""
    mapping = array.coords.get(array.rio.grid_mapping)
    text = "" if mapping is None else str(mapping.attrs.get("GeoTransform", ""))
    stored = Affine.from_gdal(*map(float, text.split())) if text else None
    axes = [array.coords.get(dim) for dim in (array.rio.x_dim, array.rio.y_dim)]
    if any(axis is None or axis.size < 2 for axis in axes):
        transform = stored
    else:
        xs, ys = (np.asarray(axis.values, float) for axis in axes if axis is not None)
        transform = _spaced(xs, ys)
        if stored is not None and transform.almost_equals(stored, 1e-3 * abs(transform.determinant) ** 0.5):
            transform = stored  # the coordinates are rounded, the stored numbers are the file's own
    return None if transform is None or transform.is_identity else transform


def _spaced(xs: AnyArray, ys: AnyArray) -> Affine:
    step_x, step_y = ((axis[-1] - axis[0]) / (axis.size - 1) for axis in (xs, ys))
    for dim, axis, step in (("x", xs, step_x), ("y", ys, step_y)):
        if step == 0 or np.abs(np.diff(axis) - step).max() > 0.1 * abs(step):
            raise SceneError(
                f"the coordinates along {dim} are not evenly spaced: bring the array to a regular grid first"
            )
    return Affine(step_x, 0, xs[0] - step_x / 2, 0, step_y, ys[0] - step_y / 2)
