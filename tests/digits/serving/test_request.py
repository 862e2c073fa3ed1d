"""Requests decoded: every form of an image ends as the data's own, and faults are named."""

import base64
import contextlib
import gzip
import io
import json
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from conftest import mnist_part
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from digits.runtime.normalise import normalise
from digits.runtime.photograph import find_ink
from digits.serving.picture import SIDE_PIXELS, RefusedError
from digits.serving.request import BODY_BYTES, IMAGES, Reader, decode

READER = Reader(find_ink, normalise)
DIGITS = mnist_part("t10k", 20).images
NORMAL = normalise(DIGITS, 28)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(body: bytes) -> np.ndarray:
    """Return the only image of a body."""
    images, script, warnings, _ = decode(body, 28, READER)
    assert (script, warnings) == (None, [])
    assert images.shape == (1, 28, 28)
    assert images.dtype == np.uint8
    return images[0]


def likeness(found: np.ndarray, normal: np.ndarray) -> float:
    """Return the correlation of two images, at best one pixel apart."""
    shifted = [np.roll(found, by, (0, 1)) for by in np.ndindex(3, 3)]
    padded = np.roll(normal, (1, 1), (0, 1)).ravel().astype(float)
    return max(float(np.corrcoef(each.ravel().astype(float), padded)[0, 1]) for each in shifted)


def body(data: Any, **others: Any) -> bytes:
    """Return a JSON body."""
    return json.dumps({"data": data} | others).encode()


@pytest.mark.parametrize(
    "form",
    [
        DIGITS.tolist(),
        DIGITS.reshape(-1, 784).tolist(),
        DIGITS.astype(float).tolist(),
        [DIGITS[0].tolist(), *DIGITS[1:].reshape(-1, 784).tolist()],
        (DIGITS - np.where((DIGITS > 0) & (DIGITS < 255), 0.4, 0)).tolist(),
    ],
    ids=["rows", "flat", "floats", "mixed", "not whole"],
)
def test_json_is_taken_as_it_is(form: Any) -> None:
    images, script, warnings, _ = decode(body(form, script="devanagari"), 28, READER)
    assert warnings == []
    assert script == "devanagari"
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, DIGITS)


def white_ink(digit: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([np.full((28, 28, 3), 255, np.uint8), digit]))


def black_ink(digit: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([np.zeros((28, 28, 3), np.uint8), digit]))


CLEAN = {
    "white on black": Image.fromarray,
    "black on white": lambda digit: Image.fromarray(255 - digit),
    "colours": lambda digit: Image.fromarray(255 - digit).convert("RGB"),
    "transparent paper, white ink": white_ink,
    "transparent paper, black ink": black_ink,
    "grey with alpha": lambda digit: black_ink(digit).convert("LA"),
    "palette": lambda digit: Image.fromarray(digit).convert("P"),
    "16 bits": lambda digit: Image.fromarray(digit.astype(np.uint16) * 257),
}


@pytest.mark.parametrize("make", CLEAN.values(), ids=CLEAN.keys())
def test_a_clean_image_is_brought_to_the_form_of_the_data(make: Any) -> None:
    for digit, normal in zip(DIGITS, NORMAL, strict=True):
        np.testing.assert_allclose(decoded(encoded(make(digit))).astype(int), normal, atol=1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    "size",
    [(28, 28), (57, 57), (280, 280), pytest.param((1999, 1999), marks=pytest.mark.slow)],
    ids=str,
)
@pytest.mark.parametrize("flip", [0, 255], ids=["light on dark", "dark on light"])
def test_any_size_shows_the_same_digit(kind: str, size: tuple[int, int], flip: int) -> None:
    large = [Image.fromarray(digit ^ np.uint8(flip)).resize(size) for digit in DIGITS[:8]]
    found = [decoded(encoded(image, kind)) for image in large]
    assert np.mean(list(map(likeness, found, NORMAL))) > 0.8  # other digits: about 0.4


def test_a_noisy_photograph_shows_its_digit() -> None:
    """Grey paper that is darker on one side, grain, and a digit somewhere on it."""
    rng = np.random.default_rng(0)
    for digit, normal in zip(DIGITS, NORMAL, strict=True):
        large = Image.fromarray(digit).resize((280, 280), Image.Resampling.BICUBIC)
        ink = np.pad(np.asarray(large) / 255, ((60, 100), (200, 40)))
        paper = 190 + 20 * np.linspace(0, 1, ink.shape[1]) + rng.normal(0, 6, ink.shape)
        photograph = Image.fromarray((paper * (1 - ink) + 50 * ink).clip(0, 255).astype(np.uint8))
        assert likeness(decoded(encoded(photograph, "JPEG", quality=80)), normal) > 0.8


def boxed(digit: np.ndarray, margin: int) -> Image.Image:
    """Return a digit cut to the box of its ink and a margin, 4 times as large."""
    rows, columns = np.flatnonzero(digit.any(1)), np.flatnonzero(digit.any(0))
    cut = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Image.fromarray(np.kron(np.pad(cut, margin), np.ones((4, 4), np.uint8)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("flip", [0, 255], ids=["light on dark", "dark on light"])
def test_a_digit_cut_to_its_ink_is_the_one_with_a_margin(kind: str, flip: int) -> None:
    """All but those whose ink is more than half of the edge, as that of an upright 1 is."""
    same = 0
    for digit in mnist_part("t10k", 200).images:
        sides = []
        for margin in (0, 1):
            image = boxed(digit, margin).point(lambda value: value ^ flip)
            with contextlib.suppress(RefusedError):
                sides.append(decoded(encoded(image, kind)).astype(int))
        if len(sides) == 2:
            exact = np.abs(sides[0] - sides[1]).mean() < 2
            same += exact if kind == "PNG" else likeness(sides[0], sides[1]) > 0.95
    assert same >= 190


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("paper", [20, 128, 235])
def test_grain_alone_is_blank(kind: str, paper: int) -> None:
    grain = np.random.default_rng(0).integers(paper - 8, paper + 9, (99, 99), np.uint8)
    with pytest.raises(RefusedError, match="is blank"):
        decoded(encoded(Image.fromarray(grain), kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))  # of which 0 and 9 mean nothing
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_turned_telephone_is_noticed(kind: str, orientation: int, order: str) -> None:
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F] = "the maker of the telephone"
    exif[0x0112] = orientation
    turned = Image.fromarray(DIGITS[0]).resize((280, 200))
    sent = encoded(turned, kind, exif=exif)
    assert struct.pack(f"{order}HHI", 0x0112, 3, 1) in sent
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(sent)))
    np.testing.assert_array_equal(decoded(sent), decoded(encoded(upright)))


@pytest.mark.parametrize("cut", range(60))
def test_damaged_exif_turns_nothing(cut: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sent = encoded(Image.fromarray(DIGITS[0]), exif=exif.tobytes()[:cut])
    assert decoded(sent).any()


def test_metadata_does_not_reach_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is: Pillow would unpack texts and profiles, and load tags, at their own size."""
    seen, original = [], Image.open

    def opened(file: io.BytesIO, formats: list[str]) -> Image.Image:
        seen.append(file.getvalue())
        return original(file, formats=formats)

    exif, text = Image.Exif(), PngInfo()
    exif[0x010F] = "metadata"
    text.add_text("metadata", "metadata", zip=True)
    text.add_itxt("metadata", "metadata")
    options: dict[str, Any] = {"exif": exif, "icc_profile": b"metadata", "xmp": b"metadata"}
    image = Image.fromarray(DIGITS[0])
    sent = (
        encoded(image, **options, pnginfo=text),
        encoded(image, "JPEG", **options, comment="meta"),
    )
    plain = [decoded(encoded(image, kind)) for kind in ("PNG", "JPEG")]
    monkeypatch.setattr(Image, "open", opened)
    for body, expected in zip(sent, plain, strict=True):
        assert b"iCCP" in body or b"ICC_PROFILE" in body
        np.testing.assert_array_equal(decoded(body), expected)
    for body in seen:
        assert not re.search(b"meta|iCCP|Exif|ICC_PROFILE|iTXt|zTXt", body)


def png(width: int, height: int, data: bytes) -> bytes:
    """Return a grey PNG that claims a size, with compressed data."""
    parts = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    for name, content in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")):
        chunk = name + content
        parts += struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return parts


def form(*files: bytes) -> bytes:
    """Return a form as browsers and curl's -F send it."""
    head = b'--X\r\nContent-Disposition: form-data; name="%d"; filename="7.png"\r\n\r\n'
    return b"".join(head % n + file + b"\r\n" for n, file in enumerate(files)) + b"--X--\r\n"


def scanned(times: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated."""
    large = Image.fromarray(DIGITS[0]).resize((SIDE_PIXELS, SIDE_PIXELS))
    whole = encoded(large, "JPEG", progressive=True, quality=5)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + scan * times + whole[-2:]


def with_blocks(count: int, between: bytes = b"") -> bytes:
    """Return a JPEG with so many blocks of Exif, and bytes after each."""
    jpeg = encoded(Image.fromarray(DIGITS[0]), "JPEG")
    block = b"\xff\xe1\0\x14Exif\0\0" + bytes(12)
    return jpeg[:2] + (block + between) * count + jpeg[2:]


def blank_picture(side: int) -> str:
    """Return a PNG without a digit, in base64."""
    return base64.b64encode(encoded(Image.new("L", (side, side)))).decode()


NO_DIGIT = {
    "nothing": (b"", 400, "body is empty"),
    "no JSON": (b"hello", 400, "expected JSON or a picture, found neither"),
    "no UTF-8": (b'{"data": "\xff"}', 400, "expected JSON or a picture, found neither"),
    "NaN": (b'{"data": [[NaN]]}', 400, "expected JSON or a picture, found neither"),
    "nested without end": (b"[" * 50_000, 422, "recursion limit"),
    "ten megabytes of lists": (b'{"data": [' + b"[]," * 3_000_000 + b"[]]}", 413, "lists"),
    "a list": (b"[1]", 400, '"data"'),
    "another key": (body([], colour=1), 400, "unknown key 'colour'"),
    "a script that is no text": (body(DIGITS.tolist(), script=1), 400, "script must be text"),
    "no image": (body([]), 400, "at least one image"),
    "text for data": (body("data"), 400, "image 0 is text but not a base64"),
    "too few numbers": (body([[0] * 783]), 400, "image 0 has shape (783,)"),
    "text": (body([[0] * 784, ["0"] * 784]), 400, "image 1 holds values that are not numbers"),
    "a long text": (body([[*[0] * 783, "x" * 8_000_000]]), 400, "values that are not numbers"),
    "a list too deep": (body([[[[0] * 28] * 28] * 2]), 400, "values that are not numbers"),
    "a number for an image": (body([[0] * 784, 10**13]), 400, "image 1 has shape (1,)"),
    "too many numbers": (body([[[0.5] * 28] * 29]), 400, "image 0 has too many numbers"),
    "too many rows": (body([[[]] * 785]), 400, "image 0 has too many numbers"),
    "null": (body([[None] * 784]), 400, "values that are not numbers"),
    "true": (body([[True] * 784]), 400, "true or false"),
    "false among numbers": (body([[0, *[False] * 783]]), 400, "true or false"),
    "true among numbers": (body([[[0.5, *[True] * 27]] * 28]), 400, "true or false"),
    "uneven": (body([[[0] * 28] * 27 + [[0] * 27]]), 400, "image 0 has uneven rows"),
    "too large": (body([[256] * 784]), 400, "not from 0 to 255"),
    "negative": (body([[-1] * 784]), 400, "not from 0 to 255"),
    "a fraction too large": (body([[255.6] * 784]), 400, "not from 0 to 255"),
    "a huge number": (body([[10**400] * 784]), 400, "a value that is not from 0 to 255"),
    "too many": (body([[0]] * (IMAGES + 1)), 413, "1,001 images"),
    "a broken PNG": (png(28, 28, zlib.compress(bytes(100))), 400, "PNG cannot be read"),
    "half a JPEG": (encoded(Image.fromarray(DIGITS[0]), "JPEG")[:400], 400, "JPEG cannot be read"),
    "a huge PNG": (png(SIDE_PIXELS + 1, 1, b""), 413, "5,001 x 1 pixels"),
    "a bomb": (png(1 << 30, 1 << 30, b""), 413, "pixels"),
    "a blank PNG": (encoded(Image.new("L", (99, 99), 128)), 400, "is blank"),
    "a TIFF": (encoded(Image.new("L", (9, 9)), "TIFF"), 422, "a TIFF; send a PNG, JPEG, WebP"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "is PostScript"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(99), 422, "HEIC"),
    "NumPy": (b"\x93NUMPY\1\0", 422, "a NumPy file"),
    "blank numbers": (body([DIGITS[0].tolist(), [0] * 784]), 400, "image 1 is blank"),
    "text that is no picture": (body(["hello"]), 400, "image 0 is text but not a base64"),
    "another name": (b'{"images": []}', 400, "\"data\": a list of images; found 'images'"),
    "colours": (body([np.dstack([DIGITS[0]] * 3).tolist()]), 400, "values that are not numbers"),
    "two files in a form": (form(b"x", b"y"), 400, "the form has 2 files; send one"),
    "a form cut short": (form(b"x")[:-9], 400, "the form cannot be read"),
    "gzip cut short": (gzip.compress(body([[0] * 784]))[:-9], 400, "the gzip is truncated"),
    "gzip in gzip": (gzip.compress(gzip.compress(b"{}")), 400, "found neither"),
    "a gzip bomb": (gzip.compress(bytes(BODY_BYTES + 1)), 413, "once unpacked"),
    "an animation": (
        encoded(white_ink(DIGITS[0]), "GIF", save_all=True, append_images=[black_ink(DIGITS[1])]),
        422,
        "the GIF is animated",
    ),
    "1,200 scans": (scanned(1200), 413, "too many scans"),
    "800,000 blocks": (
        png(28, 28, b"").replace(b"\0\0\0\0IDAT", b"\0\0\0\0tEXt\0\0\0\0" * 800_000 + b"\0" * 4),
        413,
        "more than 5,000 blocks",
    ),
    "9,000 blocks of a JPEG": (with_blocks(9000), 413, "more than 1,000 blocks"),
    "9,000 blocks of a JPEG with fill bytes": (with_blocks(9000, b"\xff"), 413, "1,000 blocks"),
    "bytes between the blocks of a JPEG": (with_blocks(9, b"!"), 400, "damaged between its blocks"),
    "some large pictures": (body([blank_picture(129)] * 13), 413, "send at most 128 a side"),
    "a form of quotes": (form(b"x").replace(b'"0"', b'"' + b'\\"' * 5000 + b'"'), 413, "a header"),
    "a form of options": (form(b"x").replace(b'"0"', b'"0"' + b"; a=b" * 2000), 413, "a header"),
    "a form of headers": (form(b"x").replace(b"\r\n\r\n", b"\r\nA: b" * 2000), 413, "a header"),
    "a form of a header in its second file": (
        form(b"x", b"y").replace(b"\n--X\r", b"--X\r").replace(b'"1"', b'"' + b'\\"' * 5000 + b'"'),
        413,
        "a header",
    ),
    "a form without a line end": (b"--content-disposition" + b"X" * 9999, 413, "a header"),
}


def test_fill_bytes_and_blocks_of_a_camera_are_read() -> None:
    np.testing.assert_array_equal(decoded(with_blocks(20, b"\xff\xff")), decoded(with_blocks(0)))


@pytest.mark.parametrize(("sent", "status", "reason"), NO_DIGIT.values(), ids=NO_DIGIT.keys())
def test_what_is_no_digit_is_reported_in_a_sentence(sent: bytes, status: int, reason: str) -> None:
    with pytest.raises(RefusedError) as refusal:
        decode(sent, 28, READER)
    assert refusal.value.status == status
    assert reason in str(refusal.value)
    assert len(str(refusal.value)) < 200


PNG = encoded(Image.fromarray(DIGITS[0]))
ROWS, FLAT = DIGITS[:3].tolist(), DIGITS[:3].reshape(3, 784).tolist()
FORMS = {
    "one image without a list": (body(ROWS[0]), 1),
    "one flat image without a list": (body(FLAT[0]), 1),
    "n x 28 x 28 x 1": (body(DIGITS[:3, :, :, None].tolist()), 3),
    "one of 28 x 28 x 1": (body(DIGITS[0][:, :, None].tolist()), 1),
    "n x 1 x 28 x 28": (body(DIGITS[:3, None].tolist()), 3),
    "MLflow's inputs": (json.dumps({"inputs": ROWS}).encode(), 3),
    "TensorFlow's instances": (json.dumps({"instances": FLAT}).encode(), 3),
    "a table": (json.dumps({"dataframe_split": {"columns": [], "data": FLAT}}).encode(), 3),
    "a table with its columns backwards": (
        json.dumps(
            {
                "dataframe_split": {
                    "columns": [f"{n // 28 + 1}x{n % 28 + 1}" for n in range(784)][::-1],
                    "data": [row[::-1] for row in FLAT],
                }
            }
        ).encode(),
        3,
    ),
    "rows of a table sorted by the names as text": (
        json.dumps(
            {"dataframe_records": [{f"p{n}": v for n, v in enumerate(row)} for row in FLAT]},
            sort_keys=True,
        ).encode(),
        3,
    ),
    "rows of a table": (
        json.dumps({"dataframe_records": [dict(enumerate(row)) for row in FLAT]}).encode(),
        3,
    ),
    "Azure ML's input_data": (json.dumps({"input_data": {"data": FLAT}}).encode(), 3),
    "gzip": (gzip.compress(body(ROWS)), 3),
    "a named input": (json.dumps({"inputs": {"image": ROWS}}).encode(), 3),
    "named images": (json.dumps({"instances": [{"image": row} for row in ROWS]}).encode(), 3),
    "a byte order mark": (b"\xef\xbb\xbf" + body(ROWS), 3),
}


@pytest.mark.parametrize(("sent", "count"), FORMS.values(), ids=FORMS.keys())
def test_other_forms_of_numbers_are_the_same_images(sent: bytes, count: int) -> None:
    images, _, warnings, _ = decode(sent, 28, READER)
    assert warnings == []
    np.testing.assert_array_equal(images, DIGITS[:count])


TEXT = base64.b64encode(PNG).decode()
PICTURES = {
    "a form": form(PNG),
    "a data URI": b"data:image/png;base64," + TEXT.encode(),
    "base64": body(TEXT),
    "base64 alone": TEXT.encode(),
    "base64 for URLs, unpadded": body(base64.urlsafe_b64encode(PNG).decode().rstrip("=")),
    "a data URI in JSON": body([f"data:image/png;base64,{TEXT}"]),
    "TensorFlow's b64": json.dumps({"instances": [{"b64": TEXT}]}).encode(),
    "a named b64": json.dumps({"instances": [{"image": {"b64": TEXT}}]}).encode(),
    "a cell of a table": json.dumps({"dataframe_split": {"data": [[TEXT]]}}).encode(),
    "gzip": gzip.compress(PNG),
    "WebP": encoded(Image.fromarray(DIGITS[0]), "WEBP", lossless=True),
    "GIF": encoded(Image.fromarray(DIGITS[0]), "GIF"),
    "BMP": encoded(Image.fromarray(DIGITS[0]), "BMP"),
}


@pytest.mark.parametrize("sent", PICTURES.values(), ids=PICTURES.keys())
def test_a_picture_is_read_in_every_form(sent: bytes) -> None:
    np.testing.assert_allclose(decoded(sent).astype(int), NORMAL[0], atol=1)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP"])
def test_base64_alone_is_recognised(kind: str) -> None:
    picture = encoded(Image.fromarray(DIGITS[0]), kind)
    np.testing.assert_array_equal(decoded(base64.b64encode(picture)), decoded(picture))


def test_numbers_and_pictures_may_be_mixed() -> None:
    images, *_ = decode(body([ROWS[1], TEXT]), 28, READER)
    np.testing.assert_array_equal(images, [DIGITS[1], decoded(PNG)])


@pytest.mark.parametrize("scaled", [DIGITS / 255, DIGITS // 128], ids=["floats", "zeros and ones"])
def test_values_from_0_to_1_are_noticed(scaled: np.ndarray) -> None:
    images, _, warnings, _ = decode(body(scaled.tolist()), 28, READER)
    np.testing.assert_array_equal(images, np.rint(scaled * 255))
    assert warnings == ["the values are from 0 to 1 and were multiplied by 255"]


def test_values_from_0_to_1_are_noticed_beside_others() -> None:
    images, _, warnings, _ = decode(body([(DIGITS[0] / 255).tolist(), ROWS[1]]), 28, READER)
    np.testing.assert_array_equal(images, DIGITS[:2])
    assert warnings == ["the values are from 0 to 1 and were multiplied by 255"]


def test_dark_ink_is_noticed() -> None:
    sent = DIGITS.copy()
    sent[3:5] = 255 - sent[3:5]
    images, _, warnings, _ = decode(body(sent.tolist()), 28, READER)
    np.testing.assert_array_equal(images, DIGITS)
    assert warnings == ["dark ink on light paper was inverted in image 3, 4"]
    images, _, warnings, _ = decode(body((1 - DIGITS[:2] / 255).tolist()), 28, READER)
    np.testing.assert_array_equal(images, DIGITS[:2])
    assert len(warnings) == 2


def test_mnist_is_taken_without_a_warning() -> None:
    digits = mnist_part("t10k", 1000).images
    images, _, warnings, _ = decode(body(digits.tolist()), 28, READER)
    assert warnings == []
    np.testing.assert_array_equal(images, digits)
