"""A small byte-fallback BPE tokenizer built the way Gemma's is."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

VOCABULARY = 2048
PAD, EOS, BOS, UNK, START_OF_TURN, END_OF_TURN, NEWLINE = 0, 1, 2, 3, 106, 107, 108

# transformers adds a <mask> of its own, past the end of the embedding, where the vocabulary has none.
MASK_ID = 4
SPECIAL = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 106: "<start_of_turn>", 107: "<end_of_turn>"}
NEWLINES = tuple("\n" * count for count in range(1, 5))
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
ALPHABET = (*map(chr, range(0x21, 0x7F)), "▁", "\t", *"éüöäñç’–…")

# Merges never join a letter to a digit, a mark or the next word: a name then has the same tokens
# everywhere, so the model can learn to copy it.
PIECES = r"▁?[A-Za-z]+|[0-9]|▁?[^A-Za-z0-9▁\s]+|▁"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def fixed_tokens() -> list[str]:
    """Ids 0 to 111 and the bytes: what does not depend on the corpus."""
    controls = [SPECIAL.get(index, f"<unused{index - 5}>") for index in range(108)]
    controls[MASK_ID] = "<mask>"
    return [*controls, *NEWLINES, *BYTES]


def learn_merges(texts: Iterable[str]) -> list[str]:
    """The merges of a plain BPE over the texts, as "left right", best first."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(fixed_tokens()),
        initial_alphabet=list(ALPHABET),
        limit_alphabet=len(ALPHABET),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [" ".join(pair) for pair in merges]


def assemble(merges: list[str]) -> dict[str, Any]:
    """Gemma's `tokenizer.json` around a small vocabulary."""
    fixed = fixed_tokens()
    pieces = dict.fromkeys([*ALPHABET, *(merge.replace(" ", "") for merge in merges)])
    vocabulary = {token: index for index, token in enumerate([*fixed, *pieces])}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(index, fixed[index]) for index in range(108 + len(NEWLINES))],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special_piece(0), _text_piece("A", 0)],
            "pair": [_special_piece(0), _text_piece("A", 0), _special_piece(1), _text_piece("B", 1)],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [BOS], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def save(definition: dict[str, Any], folder: Path) -> None:
    """Writes the three files that `AutoTokenizer.from_pretrained` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "extra_special_tokens": {"start_of_turn": "<start_of_turn>", "end_of_turn": "<end_of_turn>"},
        "model_max_length": 1024,
        "pad_token": "<pad>",
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer.json").write_text(
        json.dumps(definition, ensure_ascii=False, indent=1) + "\n", "utf-8"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")


def _added(index: int, content: str) -> dict[str, Any]:
    return {
        "id": index,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": index in SPECIAL,
    }


def _special_piece(type_id: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": "<bos>", "type_id": type_id}}


def _text_piece(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}
