"""``configs/``: every name is one that the registry builds, both hosts read the files, the demo's really runs."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import config_costs
import pandas as pd
import pytest
from checkpoints import import_host, needs_host
from config_costs import CONFIGS, SIZES, image_tokens
from test_stock_runner import HOST, Workplace

from redrel_vlmeval import plugin
from redrel_vlmeval.bases import known
from redrel_vlmeval.host import runner as hostrun
from redrel_vlmeval.names import parse

FILES = sorted(CONFIGS.glob("*.json"))
PAGE = (CONFIGS.parent / "docs/configs.md").read_text(encoding="utf-8")
BLOCKS, TOKENS = 32, 576
config = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), f"{path.name} names something twice"
        return dict(pairs)

    return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=no_repeats)


@config
def test_every_model_is_one_the_registry_builds_and_stands_beside_its_base(path):
    table, found = plugin.register({}), read(path)
    assert set(found) == {"model", "data"}
    for name, entry in found["model"].items():
        spec = parse(name)
        assert str(spec) == name and spec.baseline in found["model"], name
        base = entry.get("base", spec.base)
        assert base in table and (entry or name in table)
        assert max((stage.layer for stage in spec.stages), default=0) < known(base).blocks
        if entry:  # sheets read the setting off the name
            assert entry["class"] == "TruncatedVLM" and parse(entry["spec"]).setting == spec.setting


def test_there_is_a_file_for_each_table_and_figure():
    assert {path.stem for path in FILES} == {"table1", "table2", "fig6", "pope_textvqa", "fastv_pdrop_vtw", "demo"}
    specs = {path.stem: [parse(name) for name in read(path)["model"]] for path in FILES}
    rows = {(spec.prompt, spec.beam) for spec in specs["table2"]}
    reasoning = {("qcm", 1), ("p1-cqm", 1), ("cqm-p1", 1), ("cqm-p2", 1), ("cqm-p3", 1)}
    assert rows == reasoning | {("cqm", beams) for beams in (1, 2, 3, 4, 5)}
    grid = {(spec.stages[0].layer, spec.stages[0].keep) for spec in specs["fig6"] if spec.stages}
    assert {keep for _, keep in grid} == {0, 72, 128, 244, 432}  # section 4.2
    assert {(1, 0), (1, 432), (5, 128), (12, 0), (0, 0)} <= grid and len(grid) == 7 * 5 + 1
    assert {spec.base for spec in specs["table1"]} == {*SIZES, "qwen_chat_raw"}
    ranked = {(spec.base, bool(spec.stages)) for spec in specs["table1"] if spec.ppl and spec.prompt == "qwen"}
    assert ranked == {(base, cut) for base in ("qwen_base", "qwen_chat_raw") for cut in (False, True)}


def average(setting: str) -> float:
    found = image_tokens(parse(f"llava_v1.5_7b_trunc_{setting}"), SIZES["llava_v1.5_7b"])
    assert len(found) == BLOCKS and found[0] == TOKENS
    return sum(found) / BLOCKS


def pyramid(layers: list[int], ratio: float) -> str:
    stages = "_".join(f"l{layer}_k{round(TOKENS * ratio**number)}" for number, layer in enumerate(layers, 1))
    return f"{stages}_next_pos-new"  # ranked by the block behind each, positions counted anew


@pytest.mark.parametrize(
    ("target", "pdrop", "settings"),
    [
        (192, [8, 16, 24], ["l2_k166", "l8_k146_l16_k37_l24_k9_next_pos-new", "l11_k0"]),
        (128, [4, 8, 12], ["l2_k98", "l4_k216_l8_k81_l12_k30_next_pos-new", "l7_k0"]),
        (64, [2, 4, 6], ["l2_k30", "l2_k176_l4_k54_l6_k17_next_pos-new", "l4_k0"]),
    ],
)
def test_presets_of_other_papers_are_the_settings_nearest_to_the_budget(target, pdrop, settings):
    """FastV ranks after block 2; PyramidDrop keeps one ratio three times; VTW drops all at one layer.

    PyramidDrop's own layers are halved until its blocks before the first stage leave room for the budget.
    """
    fastv = [f"l2_k{keep}" for keep in range(TOKENS + 1)]
    vtw = [f"l{layer}_k0" for layer in range(1, BLOCKS)]
    pyramids = [pyramid(pdrop, ratio / 1000) for ratio in range(1000)]
    nearest = [min(family, key=lambda one: abs(average(one) - target)) for family in (fastv, pyramids, vtw)]
    assert nearest == settings
    assert [abs(average(one) - target) < room for one, room in zip(settings, (0.5, 0.5, 9), strict=True)] == [True] * 3
    assert pdrop == [8, 16, 24] or average(pyramid([2 * layer for layer in pdrop], 0)) > target
    assert {f"llava_v1.5_7b_trunc_{one}" for one in settings} <= set(read(CONFIGS / "fastv_pdrop_vtw.json")["model"])


def test_the_pages_gpu_hours_are_the_formulas():
    shown = re.findall(r"^\| `(\w+\.json)` \|.*\| (\d+) \| (\d+) \| ([\d.]+) \|$", PAGE, re.M)
    assert [(name, int(runs), int(asked)) for name, runs, asked, _ in shown] == [row[:3] for row in config_costs.rows()]
    assert [hours for *_, hours in shown] == [f"{row[3]:.1f}" for row in config_costs.rows()]
    for number in (config_costs.TEXT, config_costs.LETTER, config_costs.CONTINUED, config_costs.REASONING):
        assert re.search(rf"\b{number}\b", PAGE)


# the hosts


def runner() -> Any:
    """The module of the host's runner: inside the package, or the ``run.py`` beside it."""
    import_host()
    folder = hostrun.host_folder()
    if not (folder / "run.py").is_file():
        sys.path.insert(0, str(folder.parent))
        return importlib.import_module("run")
    return importlib.import_module("vlmeval.run")


@pytest.fixture
def built(monkeypatch) -> list[tuple[str, Any]]:
    """Model classes that note what they were built with: no weights are here."""
    import_host()
    from redrel_vlmeval import models

    notes: list[tuple[str, Any]] = []

    def stub(kind: str) -> Any:
        return lambda *args, **kwargs: notes.append((kind, [*args, *kwargs.values()]))

    for kind in plugin.MODEL_CLASSES:
        monkeypatch.setattr(models, kind, stub(kind))
    return notes


@needs_host
@config
def test_the_host_builds_every_model_of_a_file(path, built, monkeypatch):
    """By the runner's own function; a host of its own table is given ours, as hook and patch give it."""
    run = runner()
    import vlmeval.vlm

    from redrel_vlmeval.plugin import expose_models

    monkeypatch.setattr(run, "supported_VLM", plugin.register(dict(run.supported_VLM)))
    monkeypatch.delitem(vars(vlmeval.vlm), "__getattr__", raising=False)
    expose_models(vlmeval.vlm)
    models = read(path)["model"]
    for name in models:
        run.build_model_from_config(models, name)
    assert len(built) == len(models)
    for (name, entry), (kind, given) in zip(models.items(), built, strict=True):
        spec = parse(name)
        assert (kind == "TruncatedVLM") == spec.is_variant
        if spec.is_variant:
            assert given[:2] == [entry.get("base", spec.base), spec.setting]


@needs_host
@config
def test_the_host_builds_every_benchmark_of_a_file(path, monkeypatch, tmp_path):
    """By the runner's own function, which reads the parameters of the class; only the download is left out."""
    run = runner()
    import vlmeval.dataset

    from redrel_vlmeval.plugin import add_dataset

    add_dataset(vlmeval.dataset)
    asked, data = [], read(path)["data"]
    monkeypatch.setenv("LMUData", str(tmp_path))

    def load(self: Any, dataset: str) -> pd.DataFrame:
        asked.append(dataset)
        return pd.DataFrame({"index": [1], "question": ["?"], "A": ["x"], "answer": ["A"], "image": ["x" * 99]})

    for name, entry in data.items():
        kind = getattr(vlmeval.dataset, entry["class"])
        assert name in kind.supported_datasets()
        monkeypatch.setattr(kind, "load_data", load)
        assert run.build_dataset_from_config(data, name).dataset_name == name
    assert asked == list(data)


@pytest.mark.slow
@needs_host
@pytest.mark.timeout(600)
def test_the_demo_runs_in_the_stock_runner_and_pairs_in_the_sheet(tmp_path):
    place, count = Workplace(tmp_path), 12
    file = str(CONFIGS / "demo.json")
    done = place.run(*HOST, "--config", file, "--judge", "exact_matching", "--limit", str(count))
    assert done.returncode == 0, done.stdout[-3000:]
    for model in read(CONFIGS / "demo.json")["model"]:
        spec, folder = parse(model), place.work / model
        assert place.status(model, "RedRelShapes")["status"] == "done"
        _, *lines = (folder / f"{model}_RedRelShapes_redrel.jsonl").read_text().splitlines()  # the run's own first
        found = list(map(json.loads, lines))
        answers = pd.read_excel(folder / f"{model}_RedRelShapes.xlsx")["prediction"].tolist()
        assert len(answers) == len(found) == count
        assert {(record["setting"], record["base"]) for record in found} == {(spec.setting, "redrel_tiny")}
        if spec.ppl:
            scores = [record["option_logprobs"] for record in found]
            assert answers == [max(one, key=one.__getitem__) for one in scores] and set(scores[0]) == {*"ABCD"}
            assert all(record["new_tokens"] == 1 and record["prefill_ms"] > 0 for record in found)
            assert {record["mode"] for record in found} <= ({"dropped", "untouched"} if spec.stages else {"untouched"})
    assert place.sheet("s.csv").returncode == 0
    rows = pd.read_csv(place.work / "s.csv").set_index("model")
    for model in rows.index:
        assert rows.loc[model, "base"] == parse(model).baseline
        assert pd.notna(rows.loc[model, "RedRelShapes delta"]) == bool(parse(model).stages)
