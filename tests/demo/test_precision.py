"""What fewer bits cost: measured on real answers, and nothing where nothing was rounded."""

from localgemma_cli.demo.precision import measure
from localgemma_cli.models.catalog import demo_folder


def test_fewer_bits_move_logits_further_and_answers_hardly() -> None:
    rows = {(row.layers, row.head): row for row in measure(demo_folder(), limit=12)}
    exact = rows["bfloat16", "bfloat16"]
    assert (exact.error, exact.divergence, exact.agreement) == (0, 0, 1)
    assert exact.perplexity < 1.5  # it knows the answers, or agreement would say little
    for kind in {head for _, head in rows} - {"bfloat16", "int8"}:
        errors = [rows["bfloat16", head].error for head in ("int8", kind)] + [rows[kind, kind].error]
        assert 0 < errors[0] < 0.02 < errors[1] < errors[2] < 0.5
    for row in rows.values():
        assert row.agreement > 0.95
        assert row.divergence < 0.05
