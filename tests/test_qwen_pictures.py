"""Any text and any picture's path reach Qwen-VL as what they are; what is no picture is named with its question."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from checkpoints import needs_host
from modelbox import in_host, message
from qwen_box import kinds, watched
from qwen_checkpoint import IMAGE_START

from redrel_vlmeval.models.pictures import PictureNames, is_missing, is_plain
from redrel_vlmeval.models.qwen.core import TextTokenizer

pytestmark = needs_host


# text that looks like a tag


@pytest.mark.parametrize("kind", ["base", "chat"])
@pytest.mark.parametrize(
    "text", ["an <img> tag", "closed <img>/some/file.png</img>", "</img>", "<img><imgpad></img> <img>"]
)
def test_tags_in_the_text_stay_text(qwen_models, qwen_pictures, kind, text):
    model = qwen_models[kind]
    with watched(model) as seen:
        assert isinstance(model.generate(message(qwen_pictures, 0, text, 1)), str)
    ids = seen[0][0][0]
    assert ids.count(IMAGE_START) == ids.count(IMAGE_START + 1) == 2
    first, second = (place for place, token in enumerate(ids) if token == IMAGE_START)
    between = model.core.tokenizer.decode(ids[first + 258 : second])
    assert text in between


def test_a_tag_that_is_text_costs_no_other_token(qwen_models, qwen_pictures):
    tokenizer = qwen_models["base"].core.tokenizer
    picture = f"<img>{qwen_pictures[0]}</img>"
    kept = TextTokenizer(tokenizer, [qwen_pictures[0]])
    assert kept.encode(f"a{picture}b") == tokenizer.encode(f"a{picture}b")
    plain = [tokenizer.encode(part) for part in ("a", picture, "b")]
    assert kept.encode(f"a{picture}b<img>")[: -len("<img>")] == sum(plain, [])
    assert kept.im_end_id == tokenizer.im_end_id


def test_text_that_changes_under_composition_keeps_the_whole_answer(qwen_models, qwen_pictures):
    """The host's chat cuts its answer by the length of the text as given, the tokenizer composes accents first."""
    text = unicodedata.normalize("NFD", "\u00e9\u00e8\u00fc" * 4)
    assert len(unicodedata.normalize("NFC", text)) < len(text)
    composed = qwen_models["chat"].generate(message(qwen_pictures, 0, unicodedata.normalize("NFC", text)))
    assert composed and qwen_models["chat"].generate(message(qwen_pictures, 0, text)) == composed


def test_an_answer_with_a_pictures_tag_or_an_id_without_text_is_an_answer(qwen_models):
    for kind in qwen_models:
        core = qwen_models[kind].core
        assert core._decode([75, IMAGE_START, 76]) == core.tokenizer.decode([75, 76])
        assert core._decode([75, core.model.config.vocab_size - 1, 76]) == core.tokenizer.decode([75, 76])


# paths


ODD = [
    "p" * 250 + ".png",
    "\u56fe.png",
    "a<b>.png",
    "a|b.png",
    "cafe\u0301.png",
    "tab\t.png",
    "<img>.png",
    "<|im_end|>.png",
]


@pytest.mark.parametrize("name", [*ODD, b"\xff.png"], ids=ascii)
@pytest.mark.parametrize("kind", ["base", "chat"])
def test_a_picture_with_an_odd_path_is_seen_as_itself(qwen_models, qwen_pictures, tmp_path, kind, name):
    path = os.path.join(tmp_path, os.fsdecode(name))
    Path(path).write_bytes(Path(qwen_pictures[1]).read_bytes())
    assert not is_plain(path)
    model = qwen_models[kind]
    asked = [{"type": "image", "value": path}, {"type": "text", "value": "What is it?"}]
    with watched(model) as seen:
        assert model.generate(asked) == model.generate(message(qwen_pictures, 1, "What is it?"))
    (odd, _), (plain, _) = seen[0]
    assert len(odd) == len(plain) and [a for a, b in zip(odd, plain, strict=True) if a != b]


def test_plain_paths_are_left_alone(qwen_pictures, tmp_path):
    spaced = tmp_path / "a b (1).png"
    spaced.touch()
    names = PictureNames()
    assert names.name(str(spaced)) == str(spaced) and names.name(qwen_pictures[0]) == qwen_pictures[0]
    assert names._folder is None
    assert is_plain("p" * 254) and not is_plain("p" * 255) and not is_plain("https://x.org/a.png")


@pytest.mark.parametrize("links", [True, False])
def test_links_are_short_private_reused_and_gone_in_the_end(qwen_pictures, tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "symlink", lambda *args: (_ for _ in ()).throw(OSError("no links here")))
    path = tmp_path / "\u56fe.png"
    path.write_bytes(Path(qwen_pictures[0]).read_bytes())
    names = PictureNames()
    link = names.name(str(path))
    assert names.name(str(path)) == link and is_plain(link) and os.path.islink(link) is links
    assert Path(link).read_bytes() == path.read_bytes() and (os.stat(Path(link).parent).st_mode & 0o777) == 0o700
    path.write_bytes(Path(qwen_pictures[1]).read_bytes())
    os.utime(path, ns=(1, 1))
    assert Path(names.name(str(path))).read_bytes() == path.read_bytes()
    folder = Path(link).parent
    del names
    assert not folder.exists() and path.exists()


def test_links_are_gone_when_the_process_ends(qwen_pictures, tmp_path):
    path = tmp_path / "\u56fe.png"
    path.write_bytes(Path(qwen_pictures[0]).read_bytes())
    code = "import sys; from redrel_vlmeval.models.pictures import PictureNames\n"
    code += "keep = PictureNames(); print(keep.name(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    link = Path(done.stdout.strip())
    assert link.name == "0" and not link.parent.exists()


def test_a_temporary_folder_with_an_odd_path_is_named(tmp_path, monkeypatch):
    odd = tmp_path / "\u56fe"
    odd.mkdir()
    (odd / "a.png").touch()
    monkeypatch.setattr("tempfile.tempdir", str(odd))
    with pytest.raises(ValueError, match=r"a\.png.*set TMPDIR"):
        PictureNames().name(str(odd / "a.png"))


# pictures that are none


@pytest.fixture(params=["base", "chat", "variant"])
def either(request, qwen_models):
    return qwen_models[request.param] if request.param != "variant" else kinds().variant(qwen_models["chat"], "l1_k16")


@pytest.mark.parametrize("data", [b"", b"no picture", None, "cut"])
def test_a_corrupt_picture_is_named_with_its_question(either, qwen_pictures, tmp_path, data):
    path = tmp_path / "b\u00e4d.png"
    whole = Path(qwen_pictures[0]).read_bytes()
    path.write_bytes({None: whole[:-200], "cut": whole[:60]}.get(data, data))
    before = either.generate(message(qwen_pictures, 0, "What?"))
    with pytest.raises(ValueError, match=r"b\\?.*d\.png'?: cannot be read as an image.*question 'Which one\?'"):
        either.generate(message([*qwen_pictures, str(path)], 0, 3, "Which one?"))
    assert either.generate(message(qwen_pictures, 0, "What?")) == before


def test_a_missing_picture_is_named_with_its_question(either, tmp_path):
    gone = message([str(tmp_path / "gone.png")], 0, "Which one?")
    for ask in (either.generate, either.generate_inner):
        with pytest.raises(ValueError, match=r"gone\.png': no such file \(question 'Which one\?'\)"):
            ask([dict(item) for item in gone])
    with pytest.raises(ValueError, match=r"gone\.png': no such file \(question 41 of RedRelShapes\)"):
        in_host(lambda: either.generate(gone), 41, tmp_path)


def test_other_content_and_other_turns_are_refused(qwen_models):
    with pytest.raises(ValueError, match="'video'.*text and images"):
        qwen_models["base"].core.reply([{"type": "video", "value": "x"}])
    with pytest.raises(ValueError, match=r"user, assistant, \.\.\., user; got user, user"):
        qwen_models["chat"].core.chat([{"role": "user", "content": []}] * 2)
    with pytest.raises(ValueError, match="got $"):
        qwen_models["chat"].core.chat([])
    with pytest.raises(ValueError, match="base model holds no conversations"):
        qwen_models["base"].core.chat([{"role": "user", "content": []}])


def test_the_picture_reaches_the_answer_and_is_encoded_anew_for_each_question(qwen_models, qwen_pictures):
    core, seen = qwen_models["chat"].core, []
    handle = core.model.transformer.visual.register_forward_hook(lambda *args: seen.append(1))
    answers = [core.reply(message(qwen_pictures, number, "What is it?")) for number in (0, 1, 1)]
    handle.remove()
    assert answers[0] != answers[1] == answers[2] and len(seen) == 3


def test_the_core_needs_no_host():
    for name in ("pictures", "qwen.compat", "qwen.kernel", "qwen.checkpoint", "qwen.core"):
        source = Path(importlib.import_module(f"redrel_vlmeval.models.{name}").__file__).read_text()
        assert not re.search(r"^\s*(from|import) vlmeval", source, re.MULTILINE)


def test_a_name_longer_than_any_file_has_is_a_missing_picture() -> None:
    assert is_missing("/tmp/" + "a" * 300 + ".png")
