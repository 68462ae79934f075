"""Pictures made ready by threads while the model works: classes see what they see without, and meet errors in turn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from redrel_vlmeval.models import ahead
from redrel_vlmeval.models.ahead import Opened

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)).resize((280, 180))
TURNED = Image.Exif()
TURNED[274] = 6


def late_text(path: Path) -> None:
    """A PNG that says something behind its pixels."""
    NOISE.save(path)
    whole, last = path.read_bytes(), 12
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "late")
    Image.new("L", (1, 1)).save(path, pnginfo=text)
    chunk = path.read_bytes()
    begin = chunk.index(b"tEXt") - 4
    path.write_bytes(whole[:-last] + chunk[begin : chunk.index(b"IDAT") - 4] + whole[-last:])


def cut_short(path: Path) -> None:
    NOISE.save(path)
    path.write_bytes(path.read_bytes()[:9000])


def frames(**more: Any) -> dict[str, Any]:
    return {"save_all": True, "append_images": [NOISE.rotate(90)], "duration": 5} | more


SERVED = {
    "photo.jpg": lambda path: NOISE.save(path, quality=90),
    "turned.jpg": lambda path: NOISE.save(path, exif=TURNED),
    "cmyk.jpg": lambda path: NOISE.convert("CMYK").save(path),
    "grey.jpg": lambda path: NOISE.convert("L").save(path, progressive=True),
    "alpha.png": lambda path: NOISE.convert("RGBA").save(path),
    "palette.png": lambda path: NOISE.quantize(9).save(path, transparency=bytes(range(9))),
    "deep.png": lambda path: Image.fromarray(np.arange(5000, dtype=np.uint16).reshape(50, 100)).save(path),
    "bits.png": lambda path: NOISE.convert("1").save(path),
    "turned.png": lambda path: NOISE.save(path, exif=TURNED),
    "late.png": late_text,
    "still.webp": lambda path: NOISE.save(path, exif=TURNED),
}
OTHERS = {
    "moving.gif": lambda path: NOISE.save(path, **frames()),
    "moving.png": lambda path: NOISE.save(path, **frames()),
    "moving.webp": lambda path: NOISE.save(path, **frames()),
    "two.mpo": lambda path: NOISE.save(path, **frames()),
    "pages.tiff": lambda path: NOISE.save(path, **frames()),
    "plain.bmp": NOISE.save,
    "short.png": cut_short,
    "short.jpg": cut_short,
    "none.png": lambda path: path.write_text("no picture"),
    "missing.png": lambda path: None,
}


def shrunk(picture: Image.Image) -> Any:
    picture.thumbnail((40, 40))  # a JPEG is drafted for it
    return picture.size, picture.tobytes()


def drafted_late(picture: Any) -> Any:
    picture.load()
    return picture.draft("L", (40, 40)), shrunk(picture)


def told(picture: Any) -> Any:
    before = dict(picture.info), picture.size, picture.mode, getattr(picture, "is_animated", False)
    return before, dict(picture.getexif()), picture.tobytes(), dict(picture.info), getattr(picture, "text", None)


def paged(picture: Any) -> Any:
    picture.seek(1)
    return picture.tobytes()


LOOKS = {
    "converted": lambda picture: picture.convert("RGB").tobytes(),
    "turned": lambda picture: ImageOps.exif_transpose(picture).tobytes(),
    "shrunk": shrunk,
    "drafted": lambda picture: (picture.draft("L", (70, 45)), picture.tobytes()),
    "drafted late": drafted_late,
    "told": told,
    "forgetful": lambda picture: (picture.info.clear(), picture.convert("RGBA").tobytes(), picture.info),
    "verified": lambda picture: (picture.verify(), picture.fp),
    "verified late": lambda picture: (picture.load() is not None, picture.verify()),
    "paged": paged,
    "closed": lambda picture: (picture.close(), picture.tobytes()),
    "array": lambda picture: np.asarray(picture).tobytes(),
    "copied": lambda picture: (picture.copy().tobytes(), picture.load() is not None, picture.fp, picture.readonly),
}


def seen(path: Path, look: Any) -> Any:
    """What a class sees, or what is raised."""
    try:
        picture = Image.open(str(path))
        return type(picture), picture.format, picture.filename, look(picture), {*vars(picture)} - {"load"}, picture.mode
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("kind", [*SERVED, *OTHERS])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_class_sees_what_it_sees_without(tmp_path: Path, kind: str) -> None:
    path, own = tmp_path / kind, Image.open
    (SERVED | OTHERS)[kind](path)
    pictures = Opened()
    for name, look in LOOKS.items():
        alone = seen(path, look)
        pictures.expect([f"file://{path}"])
        made = [one.made.result() for one in pictures._expected]
        assert [one is not None for one in made] == [kind in SERVED] * path.exists()
        with pictures.serving():
            assert seen(path, look) == alone, name
        assert Image.open is own
        if kind in SERVED and name in ("converted", "turned", "told", "array", "copied"):
            assert not pictures._expected  # so it was decoded by a thread


def test_a_truncated_file_is_read_as_the_host_says_at_its_turn(tmp_path: Path, monkeypatch: Any) -> None:
    cut_short(path := tmp_path / "x.jpg")
    for before, now in ((True, False), (False, True), (True, True)):
        pictures = Opened()
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", before)
        pictures.expect([str(path)])
        assert (pictures._expected[0].made.result() is not None) == before
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", now)
        with pictures.serving():
            found = seen(path, LOOKS["converted"])
        assert found == seen(path, LOOKS["converted"]) and (found[0] is OSError) != now


def test_a_bomb_is_warned_of_at_its_turn(tmp_path: Path, monkeypatch: Any) -> None:
    NOISE.save(path := tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    pictures = Opened()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pictures.expect([str(path)])
        pictures._expected[0].made.result()
    with pictures.serving(), pytest.warns(Image.DecompressionBombWarning):
        Image.open(path).load()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    pictures.expect([str(path)])
    with pictures.serving(), pytest.raises(Image.DecompressionBombError):
        Image.open(path)


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path, pictures = tmp_path / "x.png", Opened()
    for color in ("red", "blue"):
        Image.new("RGB", (30, 20), color).save(path)
        pictures.expect([str(path)])
        pictures._expected[0].made.result()
    Image.new("RGB", (30, 20), "lime").save(path)
    with pictures.serving():
        opened = Image.open(path)
        Image.new("RGB", (30, 20), "cyan").save(tmp_path / "y.png")
        assert opened.convert("RGB").getpixel((0, 0)) == (0, 255, 0)


def test_a_file_that_is_written_again_within_one_tick_of_its_clock_is_read_again(tmp_path: Path) -> None:
    path, pictures = tmp_path / "x.png", Opened()
    now, sizes = time.time_ns(), set()
    for color in ((255, 0, 0), (254, 0, 0)):
        Image.new("RGB", (30, 20), color).save(path)
        os.utime(path, ns=(now, now))
        sizes.add(path.stat().st_size)
        if color == (255, 0, 0):
            same = ahead.unchanged([f"file://{path}"])
            assert same()
            pictures.expect([str(path)])
            assert pictures._expected[0].made.result().getpixel((0, 0)) == color
    assert len(sizes) == 1 and not same() and pictures.take(str(path)) is None


def test_only_the_thread_that_asks_is_served_and_only_within_the_context(tmp_path: Path) -> None:
    NOISE.save(path := tmp_path / "x.png")
    pictures, own, other = Opened(), Image.open, []
    pictures.expect([str(path)] * 2)
    with pytest.raises(ZeroDivisionError), pictures.serving(), Opened().serving():
        thread = threading.Thread(target=lambda: other.append(Image.open(path).tobytes()))
        thread.start()
        thread.join()
        assert len(pictures._expected) == 2 and other == [NOISE.tobytes()]
        assert [Image.open(path).tobytes(), Image.open(path).tobytes()] == other * 2 and not pictures._expected
        with path.open("rb") as stream:
            assert Image.open(stream).tobytes() == other[0] == Image.open(path, formats=["PNG"]).tobytes()
        raise ZeroDivisionError
    assert Image.open is own


def test_what_is_held_is_bounded_and_what_is_passed_over_is_dropped(tmp_path: Path, monkeypatch: Any) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(6)]
    for path in paths:
        NOISE.save(path)
    monkeypatch.setattr(ahead, "MOST", 5)
    pictures = Opened()
    pictures._free = threading.Semaphore(1)
    monkeypatch.setattr(ahead, "BYTES", 3 * 4 * NOISE.width * NOISE.height)
    monkeypatch.setattr(pictures, "_make", lambda path: Image.open(path).copy())
    pictures.expect(paths)
    made = [one.made.result() for one in pictures._expected]
    assert [one.path for one in pictures._expected] == paths[:5] and sum(one is not None for one in made) == 3
    wait = threading.Event()
    monkeypatch.setattr(pictures, "_make", lambda path: wait.wait(60))
    pictures.expect(paths[4:])
    kept, begun = pictures._expected
    assert kept.made.result() is made[4]
    pictures.expect([])
    assert not pictures._expected and pictures.take(paths[5]) is None
    wait.set()
    assert begun.made.cancelled() or begun.made.result() is True


END = """
import os, signal, sys, threading
from redrel_vlmeval.models.ahead import Ahead
begun = threading.Event()
pictures = Ahead(lambda path: begun.set() or threading.Event().wait())
pictures.expect([__file__])
assert begun.wait(60)
child = os.fork()
if not child:
    assert pictures.take(__file__) is None
    pictures._make = len
    pictures.expect([__file__])
    os._exit(pictures._expected[0].made.result(60) != len(__file__))
assert os.waitpid(child, 0)[1] == 0
if how := int(sys.argv[1]):
    os.kill(os.getpid(), how)
    pictures.take(__file__)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it forks")
@pytest.mark.parametrize("how", [0, signal.SIGINT, signal.SIGTERM])
def test_a_thread_that_never_ends_keeps_no_process_alive_and_a_fork_has_its_own(tmp_path: Path, how: int) -> None:
    (tmp_path / "end.py").write_text(END)
    done = subprocess.run([sys.executable, "end.py", str(int(how))], cwd=tmp_path, timeout=60, capture_output=True)
    assert done.returncode == -how, done.stderr.decode()
