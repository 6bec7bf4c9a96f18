"""Pictures in PNG, JPEG and TIFF, of bounded size, and without other decoders."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "TIFF")
"""Formats of Pillow to decode. It knows dozens, one of which starts another program to render a page."""

MAX_PIXELS = 1 << 26
"""Maximum number of pixels of a picture, 8192 x 8192; Pillow itself warns at about as many."""


def picture_size(path: Path) -> tuple[int, int] | None:
    """Height and width of a picture, from its header; None if that cannot be read."""
    try:
        with open_picture(path) as picture:
            return picture.height, picture.width
    except OSError:
        return None


@contextmanager
def open_picture(path: Path | IO[bytes], formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """Open a picture of some of Pillow's formats; decoding it inside the block raises OSError as well.

    Raises
    ------
    OSError
        If it cannot be read, is not one of `formats`, or claims more than `MAX_PIXELS`.
    """
    try:
        with Image.open(path, formats=formats) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise OSError(f"it claims {picture.width} x {picture.height} px, and at most {MAX_PIXELS} px are read")
            yield picture
    except UnidentifiedImageError as error:
        raise OSError(f"it is neither {', '.join(formats[:-1])} nor {formats[-1]}") from error
    except (
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        TypeError,
        OverflowError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise OSError(f"it is damaged ({error})") from error
