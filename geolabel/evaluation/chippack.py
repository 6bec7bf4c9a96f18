"""Packs: sets of chips in one file, for machines with torch and Pillow but without the chips.

A ZIP archive of ``train/`` and ``val/``, each with ``images/*.jpg``, ``masks/*.png`` and a ``labels.csv``. Nothing in
it is executed or unpickled; members with other names are refused.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from geolabel.datasets.chips import mask_path, read_chips
from geolabel.errors import OptionError
from geolabel.outputs import replacing, saving
from geolabel.training.colours import jpeg

SPLITS = ("train", "val")

MEMBER = re.compile(r"(train|val)/(labels\.csv|chips\.json|images/[^/\\:]+\.jpg|masks/[^/\\:]+\.png)")

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of all members: the same chips give the same bytes."""

LARGEST = 1 << 30
"""Maximum size of the unpacked members, bytes."""


def pack_chips(
    data: Path, path: Path, *, quality: int = 85, limit: int | None = None, overwrite: bool = False
) -> dict[str, int]:
    """Write both splits of a set to one file, atomically.

    Parameters
    ----------
    quality
        JPEG quality of the images, 1 to 95.
    limit
        Maximum number of chips of each split, evenly spread; None for all.
    overwrite
        Whether an existing file may be replaced.

    Returns
    -------
    number of chips of each split, and size of the file in bytes
    """
    counts: dict[str, int] = {}
    with replacing(path, overwrite=overwrite) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for split in SPLITS:
            chips = read_chips(data / split)
            step = 1 if limit is None else max(1, len(chips) // limit)
            rows = [",".join(["image", *(["label"] if len(chips.classes) == 1 else chips.classes)])]
            for k in range(0, len(chips), step):
                name = chips.names[k]
                archive.writestr(zipfile.ZipInfo(f"{split}/images/{name}.jpg", EPOCH), jpeg(chips.rgb(k), quality))
                mask = mask_path(chips.paths[k])
                if mask.is_file():
                    archive.writestr(zipfile.ZipInfo(f"{split}/masks/{name}.png", EPOCH), mask.read_bytes())
                rows.append(",".join([f"images/{name}.jpg", *(str(int(shown)) for shown in chips.labels[k])]))
            archive.writestr(zipfile.ZipInfo(f"{split}/labels.csv", EPOCH), "\n".join([*rows, ""]))
            counts[split] = len(rows) - 1
    return counts | {"bytes": path.stat().st_size}


def unpack_chips(path: Path, folder: Path) -> Path:
    """Write the chips of a pack to a folder, unless it holds them, and return the folder.

    Raises
    ------
    OptionError
        If the file is not such a pack.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            strange = [m.filename for m in members if not MEMBER.fullmatch(m.filename)]
            if strange or sum(m.file_size for m in members) > LARGEST:
                raise OptionError(f"{path} is no pack of chips ({(strange or ['too large'])[0]}): make it with --pack")
            for member in members:
                target = folder / member.filename
                if not target.is_file() or target.stat().st_size != member.file_size:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with saving(target) as part:
                        part.write_bytes(archive.read(member))
    except (OSError, zipfile.BadZipFile) as error:
        raise OptionError(f"{path} cannot be read as a pack of chips ({error}): make it with --pack") from error
    return folder
