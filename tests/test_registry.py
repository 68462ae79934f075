"""The model table with plain dicts for hosts: what resolves, what is refused in which words, what stays untouched."""

from __future__ import annotations

import copy
import logging
import pickle
import sys
import types
from functools import partial

import pytest

import redrel_vlmeval
from redrel_vlmeval import plugin
from redrel_vlmeval.bases import BASES, TINY
from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.host import VariantTable
from redrel_vlmeval.names import parse
from redrel_vlmeval.plugin import register


class FakeVLM:
    """Stands where a host's model class stands."""

    is_api = False

    def __init__(self, **kwargs):
        self.kwargs = kwargs


@pytest.fixture
def host():
    return {
        "llava_v1.5_7b": partial(FakeVLM, model_path="liuhaotian/llava-v1.5-7b"),
        "qwen_chat": partial(FakeVLM, model_path="Qwen/Qwen-VL-Chat"),
        "Qwen2-VL-2B-Instruct": partial(FakeVLM, model_path="Qwen/Qwen2-VL-2B-Instruct", verbose=False, retry=3),
    }


@pytest.fixture
def models(monkeypatch):
    """Model modules that record what they were built with, in place of those that need torch and weights."""

    class Recorder:
        def __init__(self, *args, **kwargs):
            self.args, self.kwargs = args, kwargs

    stub = types.ModuleType("redrel_vlmeval.models")
    for name in plugin.MODEL_CLASSES:
        setattr(stub, name, type(name, (Recorder,), {}))
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    monkeypatch.setattr(redrel_vlmeval, "models", stub, raising=False)


@pytest.mark.parametrize(
    "name",
    [
        "qwen_chat_trunc_l3_k64",
        "qwen_chat_trunc_l8_k288_l16_k144_uniform_official_p-cqm_beam3",
        "qwen_chat_p-cqm",
        "qwen_chat_beam3",
        "qwen_chat_p-qwen_ppl",
        "redrel_tiny_trunc_l2_r50",
    ],
)
def test_variant_is_absent_present_absent(host, name):
    assert name not in host
    table = register(host)
    assert name in table
    assert name not in host and name not in dict(table) and name not in list(table)


def test_host_entries_and_the_hosts_dict_are_untouched(host):
    before = dict(host)
    table = register(host)
    assert host == before and not isinstance(host, VariantTable)
    assert set(table) == set(host) | {name for name, base in BASES.items() if base.ours and not base.alias}
    assert {name for name in host if table[name] is host[name]} == {"Qwen2-VL-2B-Instruct"}


def test_registering_twice_is_registering_once(host):
    table = redrel_vlmeval.register(host)
    assert redrel_vlmeval.register(table) is table


def test_variant_entry_reads_like_a_host_entry_and_builds_over_the_table(host, models):
    table = register(host)
    entry = table["qwen_chat_trunc_l3_k64_random_beam2"]
    assert isinstance(entry, partial)
    assert entry.keywords == {"base": "qwen_chat", "spec": "l3_k64_random_beam2"}
    assert not getattr(entry.func, "is_api", False) and entry.func.__module__ == "redrel_vlmeval.plugin"
    built = entry(use_vllm=False, max_new_tokens=4)
    assert type(built).__name__ == "TruncatedVLM" and built.args == ("qwen_chat", "l3_k64_random_beam2")
    assert built.kwargs == {"table": table, "use_vllm": False, "max_new_tokens": 4}
    assert built.kwargs["table"] is table
    assert str(parse(f"qwen_chat_trunc_{entry.keywords['spec']}")) == "qwen_chat_trunc_l3_k64_random_beam2"


def test_box_model_is_built_by_its_own_name(host, models):
    built = register(host)[TINY](use_vllm=False)
    assert type(built).__name__ == "LLaVA15"
    assert built.kwargs == {"model_path": "redrel_tiny", "use_vllm": False}


@pytest.mark.parametrize("package", [False, True])
def test_llava_is_always_ours_and_says_so(host, models, caplog, monkeypatch, tmp_path, package):
    """Base and variant share a path whether or not the ``llava`` package is there."""
    if package:
        (tmp_path / "llava").mkdir()
        (tmp_path / "llava" / "__init__.py").write_text("raise RuntimeError('never imported')")
        monkeypatch.syspath_prepend(tmp_path)
    with caplog.at_level(logging.INFO):
        table = register(host)
        assert "llava_v1.5_7b_trunc_l5_k128" in table
        assert not caplog.records  # a listing says nothing, building does
        built = table["llava_v1.5_7b"]()
        register(host)["Qwen2-VL-2B-Instruct"]()
    assert built.kwargs == {"model_path": "llava-hf/llava-1.5-7b-hf"}
    assert [record.getMessage() for record in caplog.records] == [
        "llava_v1.5_7b: LLaVA15 in place of the host's class, with llava-hf/llava-1.5-7b-hf"
    ]
    assert table["llava_v1.5_13b"].keywords == {"model_path": "llava-hf/llava-1.5-13b-hf"}, (
        "absent from this host: ours"
    )


def test_llava_next_keeps_the_folder_a_user_gave_the_hosts_entry(host, models):
    host["llava_next_mistral_7b"] = partial(FakeVLM, model_path="/data/next")
    table = register(host)
    assert type(table["llava_next_mistral_7b"]()).__name__ == "LLaVANext"
    assert table["llava_next_mistral_7b"]().kwargs == {"model_path": "/data/next"}
    assert table["llava_next_yi_34b"].keywords["model_path"] == "llava-hf/llava-v1.6-34b-hf"


class Cosmos(FakeVLM):
    """Named as a class of the host that runs on vLLM alone."""


class Api(FakeVLM):
    is_api = True


@pytest.mark.parametrize("flag", ["use_vllm", "use_lmdeploy"])
def test_base_and_variant_are_built_without_the_hosts_engine(host, models, caplog, flag):
    host["big"] = partial(FakeVLM, model_path="b", retry=3, **{flag: True})
    host["plain"] = partial(FakeVLM, model_path="b", **{flag: False})
    host["only"] = partial(Cosmos, **{flag: True})
    host["api"] = partial(Api, **{flag: True})
    table = register(host)
    assert all(table[name] is host[name] for name in ("plain", "only", "api"))
    assert table["big"].keywords["retry"] == 3  # what the host changes in its entries goes on having an effect
    with caplog.at_level(logging.INFO):
        built = table["big"]()
    assert type(built) is FakeVLM and built.kwargs == {"model_path": "b", "retry": 3, flag: False}
    assert [record.getMessage() for record in caplog.records] == [
        "big: on transformers, as its variants, in place of the host's engine"
    ]
    with pytest.raises(TruncationError, match=f"big_trunc_l1_k2: {flag}: tokens are dropped in transformers"):
        table["big_trunc_l1_k2"](**{flag: True})
    assert table["big_trunc_l1_k2"](use_vllm=False).kwargs["table"] is table


@pytest.mark.parametrize(
    "name, kind",
    [("qwen_base", "RedrelQwenVL"), ("qwen_chat", "RedrelQwenVLChat"), ("qwen-vl-chat", "RedrelQwenVLChat")],
)
def test_qwen_vl_is_always_ours_and_says_so(host, models, caplog, name, kind):
    host["qwen-vl-chat"] = host["qwen_chat"]
    with caplog.at_level(logging.INFO):
        table = register(host)
        assert f"{name}_trunc_l5_k128" in table and not caplog.records
        built = table[name](use_vllm=False)
    weights = "Qwen/Qwen-VL" if name == "qwen_base" else "Qwen/Qwen-VL-Chat"
    assert type(built).__name__ == kind and built.kwargs == {"model_path": weights, "use_vllm": False}
    (record,) = caplog.records
    assert record.getMessage() == f"{name}: {kind} in place of the host's class, with {weights}"


def test_qwen_vl_keeps_the_folder_a_user_gave_the_hosts_entry(host, models):
    host["qwen_chat"] = partial(FakeVLM, model_path="/data/qwen", max_new_tokens=4)
    built = register(host)["qwen_chat"]()
    assert type(built).__name__ == "RedrelQwenVLChat" and built.kwargs == {
        "model_path": "/data/qwen",
        "max_new_tokens": 4,
    }


def test_an_alias_is_ours_only_where_the_host_has_it(host):
    assert "qwen-vl-chat" not in register(host)
    host["qwen-vl-chat"] = host["qwen_chat"]
    assert register(host)["qwen-vl-chat"] is not host["qwen_chat"]


@pytest.mark.parametrize("name", ["qwen_chatt", "nothing alike", "", "trunc", "l5_k128", 7, None])
def test_unknown_plain_name_is_not_in_the_table(host, name):
    table = register(host)
    assert name not in table and table.get(name) is None
    with pytest.raises(KeyError):
        table[name]


def test_unknown_plain_name_is_answered_with_the_nearest(host):
    with pytest.raises(KeyError, match=r"unknown model 'qwen_chatt'; did you mean 'qwen_chat' or .*_trunc_l<L>_k<K>"):
        register(host)["qwen_chatt"]


@pytest.mark.parametrize(
    "name, words",
    [
        ("qwen_chat_trunc_l5", r"'qwen_chat_trunc_l5' is no variant: .*l<L>_k<K>"),
        ("qwen_chat_trunc_l0_k5", "before block 1"),
        ("qwen_chat_trunc_l3_k64_rndom", "did you mean 'qwen_chat_trunc_l3_k64_random'"),
        ("qwen_chat_trunc_l3_k64_trunc_l4_k2", "no variant"),
        ("qwen_chat_p-none", "prompt"),
        ("qwen_chat_trunc", "no variant"),
        ("qwen_chta_trunc_l3_k64", "no model 'qwen_chta'; did you mean 'qwen_chat_trunc_l3_k64'"),
        ("_trunc_l3_k64", "base model's name is missing"),
    ],
)
def test_name_that_cannot_be_a_variant_says_why_from_every_side(host, name, words):
    table = register(host)
    with pytest.raises(KeyError, match=words):
        table[name]
    with pytest.raises(KeyError, match=words):  # the host's API mode asserts `in` and would hide the reason
        name in table  # noqa: B015
    assert table.get(name, "default") == "default"


def test_get_and_real_keys_behave_like_a_dict(host):
    table = register(host)
    assert table.get("Qwen2-VL-2B-Instruct") is host["Qwen2-VL-2B-Instruct"]
    assert table.get("qwen_chat_trunc_l1_k2").keywords["base"] == "qwen_chat"
    table["added_later"] = partial(FakeVLM)
    assert "added_later_trunc_l1_k2" in table
    del table["added_later"]
    with pytest.raises(KeyError, match="no model 'added_later'"):
        table["added_later_trunc_l1_k2"]


def test_a_hosts_own_key_that_looks_like_a_variant_wins(host):
    host["odd_trunc_thing"] = host["odd_beam2"] = partial(FakeVLM)
    table = register(host)
    assert "odd_trunc_thing" in table and table["odd_beam2"] is host["odd_beam2"]


def test_hosts_overrides_while_iterating_reach_the_variants_base(host):
    """Both runners assign to the table inside ``for k, v in table.items()``."""
    table = register(host)
    for name, entry in table.items():
        if "retry" in entry.keywords:
            entry.keywords["retry"] = 9
            table[name] = entry
    assert table["Qwen2-VL-2B-Instruct_trunc_l1_k2"].args[0]["Qwen2-VL-2B-Instruct"]().kwargs["retry"] == 9


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table))])
def test_copies_keep_resolving(host, again):
    table = again(register(host))
    assert isinstance(table, VariantTable) and "qwen_chat_trunc_l1_k2" in table


def test_check_knows_the_depth_of_the_bases_it_knows():
    from typer.testing import CliRunner

    from redrel_vlmeval.cli import app

    deep = CliRunner().invoke(app, ["check", "llava_v1.5_13b_trunc_l40_k1"])
    assert deep.exit_code == 1 and "llava_v1.5_13b has 40 blocks: L is 0 to 39" in deep.output
    assert CliRunner().invoke(app, ["check", "llava_v1.5_13b_trunc_l39_k1"]).exit_code == 0
