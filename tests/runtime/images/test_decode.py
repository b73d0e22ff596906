import io
import os
import re
import struct
import subprocess
import sys
import textwrap
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmc.errors import VlmcError
from vlmc.runtime.images import open_image
from vlmc.runtime.images.decode import FORMATS

ORIENTED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0%c\0\0\0\0\0\0\0"
DAMAGED_EXIF = (
    b"Exif\0\0garbage",
    b"garbage",
    b"Exif\0\0",
    ORIENTED[:20],
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02a\0\0\0\0\0\0\0",
    b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x05\0\xff\xff\xff\xff\xff\xff\xff\xff",
)


def encode(picture, name, **options):
    buffer = io.BytesIO()
    picture.save(buffer, name, **options)
    return buffer.getvalue()


def same(ours, theirs):
    return (
        ours.mode == theirs.mode == "RGB"
        and np.array_equal(np.asarray(ours), np.asarray(theirs))
        and ours.info.get("transparency") == theirs.info.get("transparency")
    )


def reference(path):
    from transformers.image_utils import load_image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_image(str(path))


def refused(source, **options) -> str:
    with pytest.raises(VlmcError) as caught:
        open_image(source, at="message 1", **options)
    text = str(caught.value)
    assert text.startswith("message 1: ")
    assert not re.search(r"0x[0-9a-f]{4,}|<_io|BytesIO", text)
    return text


STORED = [
    ("RGB", "png", {}),
    ("RGB", "png", {"transparency": (1, 2, 3)}),
    ("RGB", "jpeg", {"progressive": True, "subsampling": 0}),
    ("RGB", "webp", {}),
    ("RGB", "gif", {}),
    ("RGB", "bmp", {}),
    ("RGB", "tiff", {"compression": "tiff_lzw"}),
    ("RGBA", "png", {}),
    ("RGBA", "gif", {}),
    ("RGBA", "webp", {"lossless": True}),
    ("RGBA", "bmp", {}),
    ("L", "png", {}),
    ("L", "png", {"transparency": 3}),
    ("L", "jpeg", {}),
    ("LA", "png", {}),
    ("LA", "tiff", {}),
    ("1", "png", {}),
    ("1", "png", {"transparency": 0}),
    ("1", "png", {"transparency": 255}),
    ("1", "bmp", {}),
    ("1", "tiff", {"compression": "group4"}),
    ("P", "png", {}),
    ("P", "png", {"transparency": 3}),
    ("P", "png", {"transparency": bytes([0, 5, 200])}),
    ("P", "gif", {"transparency": 2}),
    ("PA", "tiff", {}),
    ("CMYK", "jpeg", {}),
    ("CMYK", "tiff", {}),
    ("YCbCr", "jpeg", {}),
    ("LAB", "tiff", {}),
    ("I;16", "png", {}),
    ("I;16", "png", {"transparency": 0}),
    ("I;16", "tiff", {}),
    ("I", "tiff", {}),
    ("F", "tiff", {}),
]


@pytest.mark.parametrize(("mode", "name", "options"), STORED)
def test_every_stored_mode_equals_transformers(mode, name, options, draw, save):
    path = save(draw(31, 17, mode), f"picture.{name}", **options)
    expected = reference(path)
    assert same(open_image(path, at="x"), expected)
    assert same(open_image(str(path), at="x"), expected)
    assert same(open_image(path.read_bytes(), at="x"), expected)
    with Image.open(path) as picture:
        before = picture.mode, picture.size
        assert same(open_image(picture, at="x"), expected)
        assert (picture.mode, picture.size) == before


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff"])
def test_pictures_are_turned_upright_as_in_transformers(orientation, name, draw, save):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(draw(31, 17), f"turned.{name}", exif=exif)
    expected = reference(path)
    assert expected.size == ((17, 31) if orientation in (5, 6, 7, 8) else (31, 17))
    assert same(open_image(path, at="x"), expected)


@pytest.mark.parametrize("exif", DAMAGED_EXIF)
@pytest.mark.parametrize("name", ["jpeg", "png", "webp"])
def test_damaged_exif_data_is_ignored(exif, name, draw, save):
    plain = save(draw(31, 17), f"plain.{name}")
    damaged = save(draw(31, 17), f"damaged.{name}", exif=exif)
    assert same(open_image(damaged, at="x"), reference(plain))


@pytest.mark.parametrize("name", ["gif", "webp", "png", "tiff"])
def test_the_first_frame_of_an_animation(name, draw, save):
    frames = [draw(20, 30, seed=seed) for seed in range(3)]
    lossless = {"lossless": True} if name == "webp" else {}
    path = save(frames[0], f"moving.{name}", save_all=True, append_images=frames[1:], **lossless)
    first = open_image(path, at="x")
    assert same(first, reference(path))
    if name != "gif":  # which has 256 colors
        assert np.array_equal(np.asarray(first), np.asarray(frames[0]))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
def test_small_and_narrow_pictures_are_read(size, draw, save):
    assert open_image(save(draw(*size), "narrow.png"), at="x").size == size


def test_a_picture_given_is_left_alone(draw):
    picture = draw(9, 8)
    opened = open_image(picture, at="x")
    assert opened is not picture
    opened.putpixel((0, 0), (0, 0, 0))
    assert picture.getpixel((0, 0)) == draw(9, 8).getpixel((0, 0))


def test_what_is_no_file_is_named(tmp_path, draw, save):
    assert "does not exist" in refused(tmp_path / "missing.png")
    assert "missing.png" in refused(str(tmp_path / "missing.png"))
    assert "is not a file" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in refused(tmp_path / "pipe")
    assert "'/dev/zero' is not a file" in refused("/dev/zero")
    assert "does not exist" in refused("picture\0.png")
    refused("x" * 5000)
    refused("")


@pytest.mark.parametrize(
    "source",
    ["http://a/b.png", "https://a/b.png", "data:image/png;base64,", Path("https://a/b.png")],
)
def test_addresses_are_not_fetched(source):
    assert "not from addresses" in refused(source)


OTHER = {
    "text": b"hello world, this is no picture at all",
    "empty": b"",
    "html": b"<html><body>404</body></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "pdf": b"%PDF-1.4\n",
    "ppm": b"P6 1 1 255\n\1\2\3",
}


@pytest.mark.parametrize("name", OTHER)
def test_other_formats_are_refused_with_the_known_ones(name, tmp_path):
    path = tmp_path / f"{name}.png"
    path.write_bytes(OTHER[name])
    text = refused(path)
    assert f"{name}.png' is not a picture" in text
    assert ", ".join(FORMATS) in text
    refused(OTHER[name])


@pytest.mark.parametrize("name", ["ICO", "JPEG2000", "PPM", "TGA", "PCX"])
def test_formats_pillow_knows_and_we_do_not(name, draw):
    assert "known format" in refused(encode(draw(16, 16), name))


@pytest.mark.parametrize("name", [name.lower() for name in FORMATS])
def test_files_cut_short(name, draw):
    whole = encode(draw(64, 48), name)
    for length in {1, 8, 20, 60, len(whole) // 4, len(whole) // 2, len(whole) - 40}:
        try:
            # BMP is bottom-up and TIFF may hold its header last: any cut must be noticed.
            picture = open_image(whole[:length], at="message 1")
        except VlmcError:
            refused(whole[:length])
        else:
            assert same(picture, open_image(whole, at="x"))


@pytest.mark.parametrize("name", [name.lower() for name in FORMATS])
def test_flipped_bytes_give_a_picture_or_one_error(name, draw):
    whole = encode(draw(24, 16), name)
    rng = np.random.default_rng(7)
    for _ in range(150):
        bad = bytearray(whole)
        for place in rng.integers(0, min(len(bad), 200), rng.integers(1, 4)):
            bad[place] = rng.integers(0, 256)
        try:
            open_image(bytes(bad), at="message 1", max_pixels=1_000_000)
        except VlmcError:
            refused(bytes(bad), max_pixels=1_000_000)


def png(width, height, kind=2, depth=8):
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
        for tag, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("size", [(65535, 65535), (2**31 - 1, 2**31 - 1), (9460, 9460), (1, 2**30)])
def test_the_header_is_enough_to_refuse_a_huge_picture(size):
    assert "too large" in refused(png(*size))


def test_the_bound_on_pixels_is_exact(draw, save):
    path = save(draw(20, 10), "picture.png")
    assert open_image(path, at="x", max_pixels=200).size == (20, 10)
    text = refused(path, max_pixels=199)
    assert "picture.png" in text
    assert "20 x 10 pixels" in text
    assert "199" in text
    assert "20 x 10" in refused(draw(20, 10), max_pixels=199)


def test_a_picture_without_pixels_is_refused():
    refused(png(0, 5))
    assert "no pixels" in refused(Image.new("RGB", (0, 5)))


def test_no_warning_reaches_the_user_from_any_thread(draw):
    data = encode(draw(40, 30), "webp", exif=DAMAGED_EXIF[3])
    filters = list(warnings.filters)
    failures = []

    def work():
        try:
            for _ in range(20):
                open_image(data, at="x")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert warnings.filters == filters


def test_a_large_photo_needs_few_copies(tmp_path):
    path = tmp_path / "large.jpeg"
    Image.effect_noise((1000, 750), 50).resize((8000, 6000)).convert("RGB").save(path)
    script = f"""
        import resource
        from vlmc.bundle.manifest import ImageSpec
        from vlmc.families.grid_processors import native_grid_spec
        from vlmc.families.image_processors import fixed_spec
        from vlmc.runtime.images import open_image, prepare
        specs = (fixed_spec({{"image_processor_type": "CLIPImageProcessor"}}, 1),
                 native_grid_spec({{"image_processor_type": "Qwen2VLImageProcessor"}}))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        image = open_image({str(path)!r}, at="x")
        for spec in specs:
            prepare(image, spec)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    root = Path(__file__).parents[3]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 4 * 8000 * 6000 * 3
