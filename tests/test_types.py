import pytest

from localgemma_cli.errors import UsageError
from localgemma_cli.types import DTYPES, parse_choice


def test_short_names_of_dtypes_mean_the_long_ones():
    assert parse_choice("bf16", DTYPES, "--dtype") == "bfloat16"


def test_an_unknown_value_is_answered_with_the_choices():
    with pytest.raises(UsageError, match="--dtype cannot be 'int4'") as caught:
        parse_choice("int4", DTYPES, "--dtype")
    assert "float32" in caught.value.hint
