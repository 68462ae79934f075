"""Where visual tokens stand among embeddings: found by the prompt's ids and their own embeddings, or refused."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from tiny_models import TEXT

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation import find_decoder, truncated

WIDTH = 32
IMAGE_INDICATOR_IDS = [-301, -302, -303]  # as in the module of Ovis' own class


class Outer(tf.PreTrainedModel):
    """A model around a language model, as MiniCPM-V, Ovis and DeepSeek-VL are: another name, another way each."""

    config_class = tf.LlamaConfig

    def __init__(self, config):
        super().__init__(config)
        self.llm = tf.LlamaForCausalLM(config)
        self.scale = 1.0
        self.post_init()

    def embedded(self, ids, pictures):
        """Ids [1, n] with placeholders -> [1, m, D]: pictures [k, D] each in place of one run of placeholders."""
        holders = (ids[0] < 0) | (ids[0] == 7)
        rows = self.llm.get_input_embeddings()(ids.clamp(min=0))[0] * self.scale
        parts, left, before = [], list(pictures), False
        for row, holder in zip(rows, holders.tolist(), strict=True):
            if not holder:
                parts.append(row[None])
            elif not before:
                parts.append(left.pop(0))
            before = holder
        return torch.cat(parts)[None]

    @torch.no_grad()
    def generate(self, input_ids=None, pixel_values=None, image_bound=None, **kwargs):
        return self.llm.generate(inputs_embeds=self.embedded(input_ids, pixel_values or []), **kwargs)

    def prepare_inputs_embeds(self, input_ids, images=None):
        return self.embedded(input_ids, images or [])


class Marked(Outer):
    """As Ovis is: ids for marks around pictures and tiles, in a second table of embeddings, behind its visual words."""

    def __init__(self, config):
        super().__init__(config)
        self.vte = torch.nn.Embedding(9, WIDTH)

    def get_vte(self):
        return self.vte

    def embedded(self, ids, pictures):
        """Pictures [k, D] each in place of one -300."""
        rows, left = self.llm.get_input_embeddings()(ids.clamp(min=0))[0], iter(pictures)
        for number, mark in enumerate(IMAGE_INDICATOR_IDS):
            rows[ids[0] == mark] = self.vte.weight[6 + number]
        shown = [next(left) if token == -300 else row[None] for token, row in zip(ids[0].tolist(), rows, strict=True)]
        return torch.cat(shown)[None]


@pytest.fixture(scope="module")
def outer():
    torch.manual_seed(0)
    model = Outer(tf.LlamaConfig(**TEXT)).eval()
    model.llm.generation_config.eos_token_id = None
    return model


def pictures(*sizes):
    torch.manual_seed(1)
    return [torch.randn(size, WIDTH) for size in sizes]


CASES = [
    ([1, 20, *[7] * 6, 21, 22], [6], [[2, 8]]),  # as many ids as features: MiniCPM-V, DeepSeek-VL
    ([1, 20, -200, 21, 22], [9], [[2, 11]]),  # one id a picture: LLaVA, forks of it
    ([1, -300, 21, -300, 22, 23], [3, 5], [[1, 4], [5, 10]]),
    ([1, -301, -300, -302, 22, 23], [7], [[1, 8]]),  # marks of the picture's own beside it: Ovis
    ([-200, 1, 22, 23], [4], [[0, 4]]),
    ([1, 22, 23, -200], [4], [[3, 7]]),
    ([1, -200, -200, 23, 23], [4], [[1, 5]]),  # a run of placeholders is one stretch
    ([1, 23, -200, 23, 24, -200, 23], [2, 3], [[2, 4], [6, 9]]),  # text that repeats itself
    ([1, 22, 23], [], []),
]


@pytest.mark.parametrize(("ids", "sizes", "where"), CASES)
def test_visual_tokens_are_where_the_rows_are_not_the_ids(outer, ids, sizes, where):
    wanted = {place for first, end in where for place in range(first, end)}
    decoder, given = find_decoder(outer), torch.tensor([ids])
    rows = outer.embedded(given, pictures(*sizes))
    with decoder.entered():
        outer.generate(input_ids=given, pixel_values=pictures(*sizes), max_new_tokens=1)
        call = decoder.read_call((), {"inputs_embeds": rows})
    assert set(decoder.image_mask(call.input_ids)[0].nonzero()[:, 0].tolist()) == wanted
    assert call.pictures is bool(sizes)
    text = [token for place, token in enumerate(call.input_ids[0].tolist()) if place not in wanted]
    assert text == [token for token in ids if token >= 0 and token != 7]


class Words:
    def decode(self, ids, skip_special_tokens):
        return " ".join(map(chr, ids))  # as a tokenizer, it has no word for an id below 0


def test_marks_around_pictures_and_tiles_are_no_visual_tokens(told):
    torch.manual_seed(0)
    model = Marked(tf.LlamaConfig(**TEXT)).eval()
    ids = torch.tensor([[1, -301, -300, -302, -300, -303, -300, -302, 20, -301, -300, -302, 21, 22]])
    given = {"input_ids": ids, "pixel_values": pictures(3, 3, 3, 2), "max_new_tokens": 2, "do_sample": False}
    visual = [0, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0]
    decoder = find_decoder(model)
    with decoder.entered():
        model.generate(**given)
        call = decoder.read_call((), {"inputs_embeds": model.embedded(ids, given["pixel_values"])})
    assert decoder.image_mask(call.input_ids)[0].tolist() == [bool(one) for one in visual]
    with truncated(model, "l1_k4_asked", Words()) as trace:
        model.generate(**given)
    assert trace.prompts[-1].tokens == [21, 14, 14, 14, 14] and told == [f"{chr(21)} {chr(22)}"]
    with truncated(model, "l1_k4"):
        model.prepare_inputs_embeds(ids, given["pixel_values"])
        rows = model.embedded(ids, given["pixel_values"])
        rows[0, 5] = 0  # a mark that is none
        with pytest.raises(TruncationError, match="Marked: the embeddings that its decoder was given are not those of"):
            model.llm.generate(inputs_embeds=rows, max_new_tokens=1)


@pytest.mark.parametrize("ids", [[1, 20, *[7] * 6, 21, 22], [1, 20, -200, 21, 22]])
def test_such_a_model_is_truncated(outer, ids):
    given = {"input_ids": torch.tensor([ids]), "pixel_values": pictures(6), "max_new_tokens": 3, "do_sample": False}
    whole = outer.generate(**given)
    with truncated(outer, "l2_k2") as trace:
        outer.generate(**given)
    assert trace.prompts[-1].tokens == [10, 10, 6, 6, 6] and trace.prompts[-1].kv == [12, 12, 8, 8, 8]
    with truncated(outer, "l2_k9"):
        assert torch.equal(outer.generate(**given), whole)
    with truncated(outer, "l2_k2") as trace:  # DeepSeek-VL: embeddings first, then the inner model by itself
        rows = outer.prepare_inputs_embeds(given["input_ids"], images=pictures(6))
        outer.llm.generate(inputs_embeds=rows, max_new_tokens=3, do_sample=False)
    assert trace.prompts[-1].tokens == [10, 10, 6, 6, 6]


@pytest.mark.parametrize("change", ["scaled", "another", "longer", "swapped", "soft"])
def test_what_cannot_be_told_is_refused(outer, change):
    ids = torch.tensor([[1, 20, -200, 21, 22, 23]])
    rows = outer.embedded(ids, pictures(4))
    with truncated(outer, "l2_k2"):
        outer.prepare_inputs_embeds(ids, images=pictures(4))
        if change == "scaled":
            rows = rows * 2
        elif change == "another":  # a placeholder of another kind
            rows[0, 0] = 0
        elif change == "longer":  # rows behind the text
            rows = torch.cat([rows, rows[:, :2] * 2], 1)
        elif change == "swapped":
            rows[0, [-1, -2]] = rows[0, [-2, -1]]
        else:  # learned prompt before the text
            rows = torch.cat([torch.randn(1, 3, WIDTH), rows], 1)
        with pytest.raises(TruncationError, match="Outer: the embeddings that its decoder was given are not those of"):
            outer.llm.generate(inputs_embeds=rows, max_new_tokens=1)


def test_pixels_without_a_place_are_refused(outer):
    ids = torch.tensor([[1, 20, 21]])
    with truncated(outer, "l2_k2"), pytest.raises(TruncationError, match="pixels were given, but none"):
        outer.generate(input_ids=ids, pixel_values=pictures(4), max_new_tokens=1)


def test_the_model_is_as_before(outer):
    with truncated(outer, "l2_k2"):
        pass
    assert not {"generate", "prepare_inputs_embeds"} & outer.__dict__.keys()
    assert not {"generate", "forward"} & outer.llm.__dict__.keys()
