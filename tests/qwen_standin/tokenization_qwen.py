"""A stand-in's tokenizer, written from the contract: tokens are bytes, and a picture's ids are the bytes of its path.

Importing it looks for a font in the hub's cache and fetches it into the working directory when it is not there.
"""

import base64
import os
import unicodedata

# the original draws boxes; here the import alone matters, for the hub's check demands it
import matplotlib
import requests
import tiktoken
from transformers import PreTrainedTokenizer
from transformers.utils import try_to_load_from_cache

FONT_PATH = try_to_load_from_cache("Qwen/Qwen-VL-Chat", "SimSun.ttf")
if FONT_PATH is None:
    FONT_PATH = "SimSun.ttf"
    if not os.path.exists(FONT_PATH):
        # no host answers to this name: a test that forgets to deal with the font fails here
        font = requests.get("https://fonts.invalid/SimSun.ttf")
        with open(FONT_PATH, "wb") as file:
            file.write(font.content)

# stand-in vocabularies are single bytes, which no pre-split can change
SPLIT = r"\s+|\S+"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
IMAGE_ST = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>")
IMG_TOKEN_SPAN = 256


def _replace_closed_tag(tokens, opening, closing, replace):
    """The tokens with every ``opening .. closing`` span, tags included, passed through ``replace``."""
    out, end = [], 0
    while opening in tokens[end:]:
        start = tokens.index(opening, end)
        if closing not in tokens[start:]:
            raise ValueError(f"{opening!r} at token {start} is never closed by {closing!r}")
        out += tokens[end:start]
        end = tokens.index(closing, start) + 1
        out += replace(tokens[start:end])
    return out + tokens[end:]


class QWenTokenizer(PreTrainedTokenizer):
    """Text to ids and back over tiktoken; specials follow the ranks of the vocabulary file."""

    vocab_files_names = {"vocab_file": "qwen.tiktoken", "ttf": "SimSun.ttf"}

    def __init__(self, vocab_file, errors="replace", **kwargs):
        super().__init__(**kwargs)
        self.errors, self.IMAGE_ST = errors, IMAGE_ST
        with open(vocab_file, "rb") as file:
            pairs = [line.split() for line in file if line.strip()]
        self.mergeable_ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
        self.special_tokens = {t: len(pairs) + i for i, t in enumerate(SPECIAL_TOKENS + IMAGE_ST)}
        self.tokenizer = tiktoken.Encoding(
            "Qwen", pat_str=SPLIT, mergeable_ranks=self.mergeable_ranks, special_tokens=self.special_tokens
        )
        self.decoder = {i: token for token, i in (self.mergeable_ranks | self.special_tokens).items()}
        self.image_start_tag, self.image_end_tag, self.image_pad_tag = IMAGE_ST[6:]
        self.img_start_id, self.img_end_id, self.img_pad_id = map(self.special_tokens.get, IMAGE_ST[6:])
        self.eod_id, self.im_start_id, self.im_end_id = map(self.special_tokens.get, SPECIAL_TOKENS[:3])
        self.image_special_tokens = {self.special_tokens[tag] for tag in IMAGE_ST[:6]}

    def __len__(self):
        return self.tokenizer.n_vocab

    @property
    def vocab_size(self):
        return self.tokenizer.n_vocab

    def get_vocab(self):
        return self.mergeable_ranks

    def _add_tokens(self, new_tokens, special_tokens=False):
        # a token named when the tokenizer is made comes here too early: new transformers then miss IMAGE_ST
        unknown = [str(token) for token in new_tokens if str(token) not in SPECIAL_TOKENS + self.IMAGE_ST]
        if unknown or (new_tokens and not special_tokens):
            raise ValueError(f"tokens cannot be added to this vocabulary: {unknown or new_tokens}")
        return 0

    def _convert_token_to_id(self, token):
        return self.special_tokens[token] if token in self.special_tokens else self.mergeable_ranks.get(token)

    def convert_tokens_to_ids(self, tokens):
        if isinstance(tokens, (str, bytes)):
            return self._convert_token_to_id(tokens)
        return [self._convert_token_to_id(token) for token in tokens]

    def _convert_id_to_token(self, index):
        return self.decoder[index]

    def convert_tokens_to_string(self, tokens):
        return b"".join(t if isinstance(t, bytes) else t.encode() for t in tokens).decode(errors=self.errors)

    def save_vocabulary(self, save_directory, **kwargs):
        path = os.path.join(save_directory, "qwen.tiktoken")
        with open(path, "w", encoding="ascii") as file:
            file.writelines(f"{base64.b64encode(t).decode()} {rank}\n" for t, rank in self.mergeable_ranks.items())
        return (path,)

    def tokenize(self, text, allowed_special="all", disallowed_special=(), **kwargs):
        ids = self.tokenizer.encode(
            unicodedata.normalize("NFC", text), allowed_special=allowed_special, disallowed_special=disallowed_special
        )
        return _replace_closed_tag([self.decoder[i] for i in ids], "<img>", "</img>", self._path_to_span)

    def _path_to_span(self, tokens):
        # a byte's *value* is taken for an id, whatever token the vocabulary keeps under that rank
        path = [self.decoder[byte] for byte in b"".join(tokens[1:-1])]
        if len(path) > IMG_TOKEN_SPAN:
            raise ValueError(f"the path between <img> and </img> has {len(path)} bytes, more than {IMG_TOKEN_SPAN}")
        return ["<img>", *path, *["<imgpad>"] * (IMG_TOKEN_SPAN - len(path)), "</img>"]

    def _span_to_path(self, ids):
        path = bytes(ids[1 : ids.index(self.img_pad_id)]).decode()
        return [self.img_start_id, *self.tokenizer.encode(path), self.img_end_id]

    def _decode(self, token_ids, skip_special_tokens=False, errors=None, keep_image_special=False, **kwargs):
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        ids = _replace_closed_tag(ids, self.img_start_id, self.img_end_id, self._span_to_path)
        kept = self.image_special_tokens if keep_image_special else ()
        if skip_special_tokens:
            ids = [i for i in ids if i < self.eod_id or i in kept]
        return self.tokenizer.decode(ids, errors=errors or self.errors)

    def from_list_format(self, list_format):
        """The prompt of a list of {"image": path} and {"text": ...}; pictures are numbered from 1."""
        text, pictures = "", 0
        for part in list_format:
            if "image" in part:
                pictures += 1
                text += f"Picture {pictures}: <img>{part['image']}</img>\n"
            elif "text" in part:
                text += part["text"]
            else:
                raise ValueError(f"neither 'image' nor 'text' in {part!r}")
        return text
