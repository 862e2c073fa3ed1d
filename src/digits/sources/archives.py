"""Pictures on disk, one for each digit: a .zip, a .tar or a folder; the path gives the class."""

import contextlib
import fnmatch
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field

from core.dataset import Digits
from core.errors import DigitsError
from core.params import strict
from core.tables import BYTES, UNPACKED_BYTES, check_regular
from digits.runtime.normalise import normalise
from digits.runtime.photograph import find_ink
from digits.serving.picture import SIDE_PIXELS, RefusedError, read_picture

PICTURE_BYTES = 50_000_000  # maximum size of a picture file
FILES = 2_000_000  # maximum in an archive, and of images in a file
ANY_SIZE = 2000  # number of pictures of any size; the sides of later ones are limited further
HEADER_BYTES = 1_000_000  # maximum of the headers of a .tar that tarfile reads at once
LONG_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"x", b"g", b"X")
JUNK = ("thumbs.db", "desktop.ini", "__macosx")  # files that operating systems add
DAMAGES = (  # what the standard library raises for a corrupted archive
    zipfile.BadZipFile,
    tarfile.TarError,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,
)


@strict
class Archive:
    """A .zip, a .tar or a folder with one picture for each digit; its path gives the class.

    Patterns are shell patterns in which {class} is the class's entry in `names`, for instance
    `*/Train/digit_{class}/*.png`; the case of the extension is ignored. `ink` is the colour of the
    writing, on the other colour.
    """

    format: Literal["archive"]
    train: tuple[str, ...]
    names: tuple[str, ...]
    ink: Literal["white", "black"]
    test: tuple[str, ...] = ()
    test_share: Annotated[float, Field(gt=0, lt=1)] | None = None  # of train, instead of test
    sha256: str | None = None  # verified by `digits data fetch`

    def __post_init__(self) -> None:
        """Raise ValueError unless either `test` or `test_share` is given."""
        if bool(self.test) == (self.test_share is not None):
            raise ValueError("give either test or test_share")


class Header(tarfile.TarInfo):
    """A header of a .tar; sizes that tarfile would follow without a limit are refused."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Return a header; raise ReadError for the size that it declares."""
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type in LONG_HEADERS and found.size > HEADER_BYTES):
            raise tarfile.ReadError(f"a header declares {found.size:,} bytes")
        return found

    def _sparse(self, *_: Any) -> Self:
        raise tarfile.ReadError("sparse files, whose maps have no limit, are not read")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _sparse


class Pictures:
    """Decodes pictures and normalises them to images of one size, as the endpoint does."""

    def __init__(self, ink: str | None, image_size: int) -> None:
        """Expect `ink` "white" or "black"; None: detect it in each picture."""
        self.ink, self.image_size = ink, image_size
        self.light: list[bool] = []  # of each picture, whether its ink seems to be white
        self.fault: DigitsError | None = None  # of the first picture without ink of colour `ink`
        self.normalised: list[np.ndarray] = []

    def add(self, name: str, data: bytes) -> None:
        """Decode a picture; raise DigitsError that begins with `name` if it cannot be read."""
        found = None
        side = int(SIDE_PIXELS * min(1, ANY_SIZE / (len(self.light) + 1)) ** 0.5)
        try:
            found = read_picture(data, find_ink, side=side)
            light = found.light
            if self.ink is not None and light != (self.ink == "white"):  # `images` checks most
                found = read_picture(data, find_ink, not light, side)
        except RefusedError as error:
            fault = DigitsError(f"{name}: is not a picture of a digit: {error}. Remove it.")
            if found is None:
                raise fault from None
            self.fault = self.fault or fault
        self.normalised.append(normalise(found.pixels[np.newaxis], self.image_size)[0])
        self.light.append(light)

    @property
    def most(self) -> str:
        """The ink of most pictures."""
        return "white" if 2 * sum(self.light) > len(self.light) else "black"

    def images(self, source: Path) -> np.ndarray:
        """Return uint8 (n, image_size, image_size) in MNIST's normal form.

        Raises DigitsError when most pictures have another ink than `ink`.
        """
        if self.light and self.ink not in (None, self.most):
            raise DigitsError(
                f"{source}: ink in params.yaml is {self.ink}, but in most pictures it is "
                f"{self.most}. Set ink: {self.most}."
            )
        if self.fault:
            raise self.fault
        return np.stack(self.normalised)


def read_archive(
    archive: Archive, source: Path, part: str, image_size: int, class_count: int, script: str
) -> Digits:
    """Return the pictures that match the patterns, in the order of their paths."""
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
    pictures, others = Pictures(archive.ink, image_size), ""
    labels: list[int] = []
    for name, read in members(source):
        found = {
            label: pattern
            for label, pattern in patterns
            if fnmatch.fnmatchcase(_small_ending(name), _small_ending(pattern))
        }
        if len(found) > 1:
            first, second = list(found.values())[:2]
            raise DigitsError(
                f"{source}: {name} matches the patterns of two classes, {first} and "
                f"{second}. Make the pattern in {part} more specific, as in w??_{{class}}_*.png."
            )
        if not found:
            others = others or name
            continue
        pictures.add(f"{source}: {name:.200}", read())
        labels += found
    if missing := sorted(set(range(class_count)) - set(labels)):
        wanted = [pattern for label, pattern in patterns if label == missing[0]]
        there = f"; it has {others}" if others else ""
        raise DigitsError(
            f"{source}: no image matches {' or '.join(wanted)}{there}. Correct {part} or names in "
            "params.yaml."
        )
    images = pictures.images(source)
    return Digits(images, np.array(labels, np.uint8), script, False, class_count)


def check_size(path: Path, count: int, size: int, archive: bool = False) -> None:
    """Raise DigitsError for too many images or bytes, before they are read or unpacked."""
    most = max(UNPACKED_BYTES, 2 * path.stat().st_size) if archive else BYTES
    if count > FILES or size > most:
        raise DigitsError(
            f"{path}: expected at most {FILES:,} images and {most:,} bytes, found {count:,} and "
            f"{size:,}. Split it."
        )


def members(source: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the path of each file of a .zip, .tar or folder, sorted, and a function that reads it.

    Files that operating systems add are skipped. A file is read only when its function is called.
    Raises DigitsError when the archive is corrupted or a file is too large.
    """
    with contextlib.ExitStack() as stack:
        try:
            found = sorted(_listed(source, stack), key=lambda entry: entry[0])
        except DAMAGES as error:
            raise _damaged(source, error) from None
        for name, opened in found:
            if not any(part.startswith(".") or part in JUNK for part in name.lower().split("/")):
                yield name, partial(_read, source, name, opened)


def _listed(source: Path, stack: contextlib.ExitStack) -> list[tuple[str, Callable[[], Any]]]:
    """Return path and a function to open each file; `stack` closes the archive."""
    if source.is_dir():
        return [
            (path.relative_to(source).as_posix(), partial(path.open, "rb"))
            for path in filter(Path.is_file, source.rglob("*"))
        ]
    check_regular(source)
    if zipfile.is_zipfile(source):
        zipped = stack.enter_context(zipfile.ZipFile(source))
        unpacked = sum(entry.file_size for entry in zipped.filelist)
        check_size(source, len(zipped.filelist), unpacked, archive=True)
        return [
            (entry.filename.replace("\\", "/"), partial(zipped.open, entry))
            for entry in zipped.infolist()
            if not entry.is_dir()
        ]
    tar = stack.enter_context(tarfile.open(source, tarinfo=Header))  # noqa: SIM115
    files = []
    for count, member in enumerate(tar):
        check_size(source, count, tar.offset, archive=True)
        if tar.offset < member.offset_data:
            raise tarfile.ReadError(f"{member.name[:100]} declares a negative size")
        files += [member] if member.isfile() else []
    _check_end(source, tar)
    return [(member.name.removeprefix("./"), partial(tar.extractfile, member)) for member in files]


def _read(source: Path, name: str, opened: Callable[[], Any]) -> bytes:
    """Return a file's bytes; raise DigitsError if it is too large for a picture."""
    try:
        with opened() as file:
            data: bytes = file.read(PICTURE_BYTES + 1)
    except DAMAGES as error:
        raise _damaged(source, error) from None
    if len(data) > PICTURE_BYTES:
        raise DigitsError(
            f"{source}: {name}: has more than {PICTURE_BYTES:,} bytes. Narrow the patterns in "
            "params.yaml."
        )
    return data


def _damaged(source: Path, error: Exception) -> Exception:
    """Return the error to raise: that of the disk, or that the archive is corrupted."""
    if getattr(error, "errno", None):
        return error
    reason = " ".join(str(error).split())[:300]  # tarfile's has a line for each compression
    return DigitsError(f"{source}: is not a valid .zip or .tar ({reason}); download it again")


def _small_ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return f"{stem}{dot}{ending.lower()}" if "/" not in ending else name


def _check_end(source: Path, tar: tarfile.TarFile) -> None:
    """Raise TarError unless all of a .tar was read: tarfile stops silently at corrupted data."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"corrupted or truncated at byte {tar.offset:,}")
    while tar.fileobj.read(1 << 20):  # up to the checksum of a compressed file
        check_size(source, 0, tar.fileobj.tell(), archive=True)
