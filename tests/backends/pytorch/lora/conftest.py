"""A small base model, and a plain adapter for it."""

from pathlib import Path

import pytest
import torch
from support.adapters import trained
from support.checkpoints import add_tokenizer, tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny("gemma2").to(torch.bfloat16).save_pretrained(folder)
    return add_tokenizer(folder)


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("plain"), base, target_modules=["q_proj", "v_proj"])
