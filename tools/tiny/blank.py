"""The untrained ``redrel_tiny``: a LLaVA of transformers' own classes, small enough to ship, and its tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from redrel_vlmeval.models.llava import input
from redrel_vlmeval.models.tiny import scenes

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # CLIP's
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
WORD = r"[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]|\n"
# a conversation as input.chat_prompt makes it of one
CHAT_TEMPLATE = (
    input.SYSTEM
    + """{% for message in messages %}{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"""
    """{% for item in message['content'] %}{% if item['type'] == 'image' %} <image> {% else %}{{ item['text'] }}"""
    """{% endif %}{% endfor %}{% if message['role'] == 'user' %} {% else %}</s>{% endif %}{% endfor %}"""
    """{% if add_generation_prompt %}ASSISTANT: {% endif %}"""
)
INITIAL_STD = 0.08  # the library's 0.02 stalls at guessing


def vocabulary() -> list[str]:
    """Every word the pictures' questions can hold, sorted, after the special tokens and the answer letters."""
    texts = [input.SYSTEM, "USER: ASSISTANT:", " ".join([*scenes.COLORS, *scenes.SHAPES, *scenes.DIRECTIONS])]
    texts += [input.question_text({"question": "\n", "A": "x"}), input.question_text({"question": ""})]
    texts += [
        *scenes.FACTS,
        *scenes.PEOPLE,
        "likes the color. What does like?",
        "What color is the shape? What shape is the red one?",
    ]
    texts += [
        "What shape has the one that has the triangle's color?",
        "A B C D E F G H Yes No yes no 0 1 2 3 4 5 6 7 8 9",
    ]
    words = {word for text in texts for word in re.findall(WORD, text)}
    return [*SPECIAL, *sorted(words)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, punctuation mark or line break; spaces are not tokens."""
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary())}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    raw.decoder = decoders.Fuse()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, additional_special_tokens=["<image>"], **names)


def make_model(vocab: int) -> LlavaForConditionalGeneration:
    """Random weights: CLIP tower (its second-last layer is read, as in LLaVA), projector, 8 decoder blocks."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=scenes.SIZE,
        patch_size=scenes.CELL,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=vocab,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        initializer_range=INITIAL_STD,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=scenes.GRID**2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
    )
    model = LlavaForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "position_embedding" not in name:
            torch.nn.init.normal_(weight, std=INITIAL_STD, generator=generator)
    patch_positions(model.model.vision_tower).weight.data[1:] = positions(128)
    return model.float()


def patch_positions(tower: torch.nn.Module) -> torch.nn.Embedding:
    """The vision tower's position embedding; releases of transformers nest it differently.

    Raises:
        LookupError: no module of the tower has one.
    """
    for _name, module in tower.named_modules():
        found = getattr(module, "position_embedding", None)
        if isinstance(found, torch.nn.Embedding):
            return found
    raise LookupError(f"{type(tower).__name__}: no module with a position_embedding; expected CLIP's vision tower")


def positions(width: int) -> torch.Tensor:
    """Sines and cosines of row and column in random directions, [64, width]: a step to a neighbour is a rotation."""
    cell = torch.arange(scenes.GRID**2)
    angles = (
        torch.stack([cell // scenes.GRID, cell % scenes.GRID])[..., None] * torch.arange(1, 5) * torch.pi / scenes.GRID
    )
    waves = torch.cat([angles.sin(), angles.cos()], -1).permute(1, 0, 2).flatten(1)
    directions = torch.randn(waves.shape[1], width, generator=torch.Generator().manual_seed(1)) / width**0.5
    return waves @ directions * 1.5


def picture_settings(side: int) -> dict[str, object]:
    """What a LLaVA checkpoint's preprocessor_config.json says, for pictures of ``side`` pixels."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }


def write_processor(folder: Path) -> None:
    """What transformers' own ``LlavaProcessor`` reads beside the pictures' settings; its prompt is our class's."""
    settings = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "num_additional_image_tokens": 1,  # CLIP's class token, which the strategy below leaves out
        "patch_size": scenes.SIZE // scenes.GRID,
        "vision_feature_select_strategy": "default",
    }
    (folder / "processor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def save(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write config, weights (float16), tokenizer and preprocessor as a local checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(picture_settings(scenes.SIZE), indent=2) + "\n")
    spell_as_the_hub(folder)
    write_processor(folder)


def spell_as_the_hub(folder: Path) -> None:
    """Rename what only the newest releases of transformers read; all of them read the spelling of ``llava-hf``."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    tower = re.compile(r"^vision_tower\.(?!vision_model\.)")
    save_file({tower.sub("vision_tower.vision_model.", name): w for name, w in weights.items()}, file, {"format": "pt"})
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["additional_special_tokens"] = settings.pop("extra_special_tokens", ["<image>"])
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("backend", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
