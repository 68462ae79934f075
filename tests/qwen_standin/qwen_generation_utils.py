"""A stand-in's chat text and stop words, written from the contract: chatml turns, and what ends an answer."""

import torch
from transformers.generation import LogitsProcessor


def get_stop_words_ids(chat_format, tokenizer):
    """The id sequences that end an answer; "raw" has a word of its own, "chatml" only the turn marks."""
    if chat_format == "chatml":
        return [[tokenizer.im_end_id], [tokenizer.im_start_id]]
    if chat_format == "raw":
        return [tokenizer.encode("Human:"), [tokenizer.eod_id]]
    raise NotImplementedError(f"chat_format is {chat_format!r}, not 'chatml' or 'raw'")


def turn(tokenizer, role, content):
    """One chatml turn as (text, ids); only the image and box tags of the content count as special."""
    tags = set(tokenizer.IMAGE_ST)
    ids = [tokenizer.im_start_id, *tokenizer.encode(role, allowed_special=tags), *tokenizer.encode("\n")]
    ids += [*tokenizer.encode(content, allowed_special=tags), tokenizer.im_end_id]
    return f"<|im_start|>{role}\n{content}<|im_end|>", ids


def past_turns(tokenizer, history, room):
    """The latest whole exchanges whose ids number fewer than ``room``, oldest first, as (text, ids)."""
    text, ids, newline = "", [], tokenizer.encode("\n")
    for question, answer in reversed(history):
        more_text, more = turn(tokenizer, "user", question)
        more_text, more = f"\n{more_text}\n", newline + more + newline
        if answer is not None:
            said, said_ids = turn(tokenizer, "assistant", answer)
            more_text, more = more_text + said, more + said_ids
        if len(more) + len(ids) >= room:
            break
        text, ids = more_text + text, more + ids
    return text, ids


def make_context(tokenizer, query, history=None, system="", max_window_size=6144, chat_format="chatml"):
    """The prompt as (text, ids): system, history as far as it fits, question, and the head of the answer."""
    if chat_format == "raw":
        return query, tokenizer.encode(query)
    if chat_format != "chatml":
        raise NotImplementedError(f"chat_format is {chat_format!r}, not 'chatml' or 'raw'")
    newline = tokenizer.encode("\n")
    text, ids = turn(tokenizer, "system", system)
    past_text, past = past_turns(tokenizer, history or [], max_window_size - len(ids))
    asked_text, asked = turn(tokenizer, "user", query)
    head = [tokenizer.im_start_id, *tokenizer.encode("assistant"), *newline]
    text += f"{past_text}\n{asked_text}\n<|im_start|>assistant\n"
    return text, ids + past + newline + asked + newline + head


def decode_tokens(tokens, tokenizer, raw_text_len, context_length, chat_format, errors="replace", **_):
    """The answer's text: up to the first turn mark, or, without one, *without the last token*, as the original does."""
    if chat_format != "chatml":
        raise NotImplementedError(f"the stand-in decodes chat_format 'chatml' alone, not {chat_format!r}")
    tokens = tokens.tolist() if torch.is_tensor(tokens) else tokens
    marks = (tokenizer.im_start_id, tokenizer.im_end_id)
    last = max(len(tokens) - 1, context_length)
    end = next((i for i in range(context_length, len(tokens)) if tokens[i] in marks), last)
    return tokenizer.decode(tokens[:end], errors=errors)[raw_text_len:].strip()


class StopWordsLogitsProcessor(LogitsProcessor):
    """Makes end-of-text win the step after a row has ended in one of the stop sequences."""

    def __init__(self, stop_words_ids, eos_token_id):
        if not stop_words_ids or not all(isinstance(word, list) and word for word in stop_words_ids):
            raise ValueError(f"stop_words_ids is {stop_words_ids!r}, not a list of lists of ids")
        self.stop_words_ids = [word for word in stop_words_ids if word != [eos_token_id]]
        self.eos_token_id = eos_token_id

    def __call__(self, input_ids, scores):
        for row, ids in enumerate(input_ids.tolist()):
            if any(ids[-len(word) :] == word for word in self.stop_words_ids):
                scores[row, self.eos_token_id] = 2.0**15
        return scores
