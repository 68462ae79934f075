"""No raw error of a host's class: what it lacks is supplied, what is refused is refused before anything is built."""

from __future__ import annotations

import logging
import sys
from functools import partial
from types import ModuleType

import pytest
from checkpoints import host_table, needs_host

from redrel_vlmeval import checking, trying
from redrel_vlmeval.errors import InvalidValue, TruncationError, UnknownName
from redrel_vlmeval.host import build_base, kind_of, mending
from redrel_vlmeval.plugin import register

KINDS = {"SailVL": "SailVL", "VinternChat": "Vintern-3B-beta", "QTuneVLChat": "QTuneVL1_5-2B"}
SOURCE = """
class Base:
    def opened(self, path):
        return [Image.open(one) for one in path]

class Model(Base):
    def __init__(self, **given):
        self.given = given

    def letters(self):
        return string.ascii_uppercase

    def local(self):
        import os

        return os.sep
"""


@pytest.fixture(scope="module")
def table():
    return host_table()


@pytest.fixture(scope="module")
def internvl(tmp_path_factory):
    with trying.on_cpu():
        yield trying.make("InternVLChat", "InternVL3-8B", tmp_path_factory.mktemp("internvl"))


@needs_host
def test_every_refused_name_is_refused_in_one_sentence_before_it_is_built(table):
    refused = [one for one in checking.verdicts() if one.verdict == "refused"]
    assert len(refused) > 200
    for one in refused:
        name = f"{one.name}_trunc_l2_k8"
        with pytest.raises(TruncationError) as built:
            table[name]()
        with pytest.raises(UnknownName) as checked:
            checking.check(name)
        assert str(built.value) == str(checked.value)
        assert one.name in str(built.value) and one.why in str(built.value)


@needs_host
def test_a_name_that_is_not_refused_goes_on_to_be_built(table):
    for one in checking.verdicts():
        if one.verdict != "refused":
            kind = type(getattr(kind_of(table[one.name]), "__name__", "Ours"), (), {})
            assert isinstance(build_base(f"{one.name}_trunc_l2_k8", one.name, kind, {}), kind)


@needs_host
@pytest.mark.parametrize("error", [ImportError, AttributeError, NameError, TypeError])
def test_a_class_whose_code_does_not_run_here_is_refused_with_what_is_known_of_it(error):
    def fail(_self):
        raise error("no such\nthing")

    kind = type("IDEFICS2", (), {"__init__": fail})
    with pytest.raises(TruncationError, match=rf"base 'some' does not run here \({error.__name__}: no such thing\); "
                                              "known of it: with transformers below 5"):  # fmt: skip
        build_base("some_trunc_l2_k8", "some", kind, {})


@needs_host
@pytest.mark.parametrize("kind", KINDS)
def test_a_keyword_that_transformers_takes_no_longer_is_dropped(table, internvl, tmp_path, kind):
    name = next(name for name, entry in table.items() if getattr(kind_of(entry), "__name__", "") == kind)
    message = [{"type": "image", "value": trying.draw(tmp_path)[0]}, {"type": "text", "value": "What?"}]
    variant = table[f"{name}_trunc_l2_k8"](**internvl, max_new_tokens=2)
    assert type(variant.inner) is type(table[name](**internvl)) is kind_of(table[name])
    with variant.cut() as trace:
        assert isinstance(variant.inner.generate(message, dataset="MMStar"), str)
    assert trace.prompts[-1].images[2:] == [8, 8, 8]
    if mending._release() >= 5:
        with pytest.raises(InvalidValue, match=f"{name}: load_in_8bit=True: transformers .* leave it out"):
            table[f"{name}_trunc_l2_k8"](**internvl, load_in_8bit=True)


def test_a_name_that_the_hosts_module_does_not_import_is_supplied_once(monkeypatch, caplog):
    module = ModuleType("broken_host")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(SOURCE, vars(module))
    kind = module.Model
    assert mending.unimported(kind) == ["Image", "string"]
    entry = register({"broken": partial(kind, model_path="here"), "whole": partial(dict)})["broken"]
    with caplog.at_level(logging.WARNING):
        assert entry().given == entry(model_path="here").given == {"model_path": "here"}
    assert [one.getMessage() for one in caplog.records] == [
        "broken: broken_host uses Image, string without an import; supplied"
    ]
    assert kind().letters().startswith("AB") and "os" not in vars(module)
    own = module.string = ModuleType("own")
    assert not mending.supply(kind) and module.string is own


def test_a_keyword_that_a_class_says_by_itself_is_dropped_only_where_it_changes_nothing():
    from transformers import PreTrainedModel

    with mending.without_8bit("some", None), pytest.raises(InvalidValue, match="some: load_in_8bit=True"):
        PreTrainedModel.from_pretrained("nowhere", load_in_8bit=True)
