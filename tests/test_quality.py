"""What the presets lose of a real Gemma, against bitsandbytes; tests/quality.py makes the whole table."""

from pathlib import Path

import pytest
from quality import FORMATS, Judge

TOKENS, VOCABULARY = 80, 4000  # few, so that it takes seconds


@pytest.mark.timeout(600)
def test_memory_loses_less_than_half_of_what_nf4_loses_in_fewer_bits(real_checkpoint: Path) -> None:
    judge = Judge(real_checkpoint, TOKENS, VOCABULARY)
    memory, nf4, int8 = (
        judge.compare(FORMATS[name](real_checkpoint))
        for name in ("`memory`", "bitsandbytes NF4, head in bfloat16", "`--quantization int8`")
    )
    assert 0 < memory.kl < 0.5 * nf4.kl
    assert memory.bits < nf4.bits
    assert memory.same_top > nf4.same_top
    assert 0 < int8.kl < 0.002
