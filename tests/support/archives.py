"""Pictures and archives of them, made for tests."""

import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def png(seed: int, side: int, ink: int = 255) -> bytes:
    """Return a picture of a block of ink somewhere on paper."""
    image = np.full((side, side), 255 - ink, np.uint8)
    image[2 + seed : side - 4, 3 : side - 5 + seed] = ink
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def write_tar(path: Path, files: dict[str, bytes], compression: str = "gz") -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    data = out.getvalue()
    if compression:
        data = gzip.compress(data) if compression == "gz" else lzma.compress(data)
    path.write_bytes(data)
