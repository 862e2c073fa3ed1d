"""Read files or folders of digits of any format, for `digits score` and `digits data inspect`."""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.dataset import as_bytes, light_paper
from core.errors import DigitsError
from core.tables import Table, check_regular, limited_memory, opened
from digits.serving.picture import RefusedError, picture_kind
from digits.sources.archives import DAMAGES, PICTURE_BYTES, Pictures, members
from digits.sources.readers import in_normal_form, read_file

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")  # of pictures in archives


class Found(NamedTuple):
    """The content of a file. The images in `table` are unconverted, but pictures are normalised."""

    kind: str
    table: Table
    ink: str  # white or black
    names: list[str]  # of the pictures in an archive or folder


def kind_of(path: Path) -> str:
    """Return csv, idx, npz, parquet, archive or picture; raise DigitsError for any other format."""
    if path.is_dir():
        return "archive"
    check_regular(path)
    with path.open("rb") as file:
        start = file.read(tarfile.BLOCKSIZE)
    try:
        if start[:4] == b"PK\3\4":
            with zipfile.ZipFile(path) as archive:
                names = [name.lower() for name in archive.namelist()]
            if any(name.endswith(".npy") for name in names):
                return "npz"
            pictures = any(name.endswith(ENDINGS) for name in names)
            return "archive" if pictures or len(names) > 2 else "csv"
    except DAMAGES as error:
        raise DigitsError(f"{path}: is corrupted ({error}). Download it again.") from None
    if start[:2] == b"\x1f\x8b":
        with opened(path) as packed:
            start = packed.read(tarfile.BLOCKSIZE)
    if start[:3] == b"\0\0\x08":
        return "idx"
    if start[:4] == b"PAR1":
        return "parquet"
    tar = start[257:262] == b"ustar" or start.startswith((b"BZh", b"\xfd7zXZ\0"))
    if tar or tarfile.is_tarfile(io.BytesIO(start)):  # the oldest form has no mark
        return "archive"
    try:
        return "picture" if picture_kind(start) else "csv"
    except RefusedError as error:
        raise DigitsError(f"{path}: {str(error).partition(';')[0]}. Convert it.") from None


def read_any(path: Path, image_size: int, part: str = "test") -> Found:
    """Read a file or folder; raise DigitsError that names the file and what is wrong in it."""
    with limited_memory(path):
        return _read_any(path, kind_of(path), image_size, part)


def _read_any(path: Path, kind: str, image_size: int, part: str) -> Found:
    if kind in ("archive", "picture"):
        pictures, names = Pictures(None, image_size), []
        if kind == "picture":
            if path.stat().st_size > PICTURE_BYTES:
                raise DigitsError(
                    f"{path}: has more than {PICTURE_BYTES:,} bytes. Make it smaller."
                )
            pictures.add(str(path), path.read_bytes())
        for name, read in members(path) if kind == "archive" else ():
            if name.lower().endswith(ENDINGS):
                pictures.add(f"{path}: {name:.200}", read())
                names.append(name)
        if not pictures.light:
            raise DigitsError(f"{path}: holds no picture. Expected {', '.join(ENDINGS)} files.")
        images = pictures.images(path)
        return Found(kind, Table(images, None, pictures=True), pictures.most, names)
    table = read_file(kind, path, part, image_size, None)
    if not len(table.images):
        raise DigitsError(f"{path}: holds no image.")
    return Found(kind, table, "black" if light_paper(as_bytes(table.images)[0]) else "white", [])


def read_unlabelled(path: Path, image_size: int) -> tuple[np.ndarray, list[str]]:
    """Return images uint8 (n, image_size, image_size), white on black, and what was changed."""
    found = read_any(path, image_size)
    if found.kind in ("archive", "picture"):
        return found.table.images, []
    images, notes = in_normal_form(path, found.table.images, image_size, found.ink, False)
    inverted = ["dark ink on light paper was inverted"] if found.ink == "black" else []
    return images, inverted + notes
