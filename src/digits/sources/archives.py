"""Archives of images, .zip or .tar: one image for each digit, its class given by its path."""

import fnmatch
import io
import lzma
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from core.dataset import Digits
from core.errors import DigitsError
from core.params import STRICT
from digits.runtime.normalise import normalise

DAMAGES = (  # what the standard library raises for a damaged archive
    zipfile.BadZipFile,
    tarfile.TarError,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,
)


@dataclass(frozen=True)
class Archive:
    """A .zip or .tar with one image for each digit; its path inside gives the class.

    Patterns are those of a shell, with {class} for the class's entry in `names`, for instance
    `*/Train/digit_{class}/*.png`. `ink` says whether writing is white on black or the reverse.
    """

    __pydantic_config__ = STRICT

    format: Literal["archive"]
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: tuple[str, ...]
    ink: Literal["white", "black"]


def read_archive(
    archive: Archive, source: Path, part: str, image_size: int, class_count: int, script: str
) -> Digits:
    """Return the images of an archive that match the patterns, in the order of their paths."""
    if len(archive.names) != class_count:
        raise DigitsError(
            f"params.yaml: {script}: names has {len(archive.names)} entries for {class_count} "
            "classes; give one for each class, in their order"
        )
    patterns = [
        (label, pattern.replace("{class}", name))
        for pattern in (archive.train if part == "train" else archive.test)
        for label, name in enumerate(archive.names)
    ]
    by_shape: dict[tuple[int, ...], list[tuple[int, int, np.ndarray]]] = defaultdict(list)
    count = 0
    for member, data in _members(source):
        label = next((k for k, pattern in patterns if fnmatch.fnmatchcase(member, pattern)), None)
        if label is not None:
            try:
                image = _grey(Image.open(io.BytesIO(data)), archive.ink)
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                unknown = isinstance(error, UnidentifiedImageError)
                reason = "unknown format" if unknown else error
                raise DigitsError(
                    f"{source}: {member}: is not an image ({reason}); remove it from the archive"
                ) from None
            image = image if archive.ink == "white" else 255 - image
            if not image.any():
                raise DigitsError(f"{source}: {member}: is blank; remove it from the archive")
            by_shape[image.shape].append((count, label, image))
            count += 1
    images = np.empty((count, image_size, image_size), np.uint8)
    labels = np.empty(count, np.uint8)
    for same in by_shape.values():
        index = [place for place, _, _ in same]
        images[index] = normalise(np.stack([image for _, _, image in same]), image_size)
        labels[index] = [label for _, label, _ in same]
    if missing := sorted(set(range(class_count)) - set(labels.tolist())):
        names = [pattern for label, pattern in patterns if label == missing[0]]
        raise DigitsError(
            f"{source}: no image matches {' or '.join(names)}; correct {part} or names in "
            "params.yaml"
        )
    return Digits(images, labels, script, False, class_count)


def _grey(image: Image.Image, ink: str) -> np.ndarray:
    """Return uint8 (height, width) of an image of any mode; where it is transparent, paper."""
    if image.mode.startswith("I"):  # 16 bits
        return (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "black" if ink == "white" else "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return np.asarray(image.convert("L"))


def _members(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and bytes of each file in a .zip or .tar, sorted by path."""
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as zipped:
                for name in sorted(zipped.namelist()):
                    if not name.endswith("/"):
                        yield name, zipped.read(name)
        else:
            with tarfile.open(source) as tar:
                members = sorted(tar.getmembers(), key=lambda member: member.name)
                _check_end(tar)
                for member in members:
                    file = tar.extractfile(member) if member.isfile() else None
                    if file is not None:
                        yield member.name, file.read()
    except DAMAGES as error:
        if getattr(error, "errno", None):
            raise  # of the disk, not of the archive
        raise DigitsError(
            f"{source}: is no readable .zip or .tar archive ({error}); fetch it again"
        ) from None


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise TarError unless all of a .tar was read: tarfile stops at damage without a word."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"damaged or cut short at byte {tar.offset:,}")
    while tar.fileobj.read(1 << 20):  # to where a compressed file has its checksum
        pass
