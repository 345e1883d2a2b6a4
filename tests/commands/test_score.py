"""`localgemma score`: perplexity and bits per byte are those of transformers' own log_softmax."""

import json
import math
from pathlib import Path

import pytest
import torch
from support.checkpoints import plan_for, tiny
from support.gguf_models import Q8_0, write_gguf
from support.models import demo_fp32, demo_tokenizer
from support.program import Program
from support.schemas import validate
from transformers import AutoModelForCausalLM, PreTrainedModel

from localgemma_cli.backends.pytorch.backend import load_backend
from localgemma_cli.text_score import TextScore, text_windows

PROSE = (Path(__file__).parents[1] / "prose.txt").read_text(encoding="utf-8")
EXACT = ("--dtype", "float32", "--quiet")


def expected_logprob(model: PreTrainedModel, ids: list[int], size: int, stride: int) -> float:
    """The sum over all ids but the first, `<bos>`, which every window begins with.

    A loop over targets: each is predicted from the window that reaches it first.
    """
    bos, text = ids[0], ids[1:]
    total, end = 0.0, 0
    while end < len(text):
        begin, end = end, min(size - 1 if end == 0 else end + stride, len(text))
        start = max(end - (size - 1), 0)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[bos, *text[start:end]]])).logits[0]
        logprobs = logits.float().log_softmax(-1)
        total += sum(float(logprobs[at - start, text[at]]) for at in range(begin, end))
    return total


def test_each_token_is_scored_once_whatever_the_windows_are() -> None:
    for tokens in (1, 2, 7, 8, 9, 30):
        for size in (1, 4, 8):
            for stride in range(1, size + 1):
                windows = list(text_windows(tokens, size, stride))
                scored = [at for each in windows for at in range(each.first, each.end)]
                assert scored == list(range(tokens))
                assert all(each.end - each.start <= size for each in windows)
                assert all(each.end - each.start == size for each in windows[1:])
                assert all(each.end - each.first <= stride for each in windows[1:])


def test_figures_follow_from_the_sum() -> None:
    score = TextScore(4, 8, -4 * math.log(2)) + TextScore(4, 24, -4 * math.log(2))
    assert (score.perplexity, score.bits_per_byte) == (pytest.approx(2), pytest.approx(8 / 32))


def test_texts_score_as_transformers_does(program: Program) -> None:
    long, short = PROSE[:4000], "Größe 🙂 <end_of_turn>\r\n"
    (program.folder / "long.txt").write_text(long)
    done = program(
        "score", "-m", "demo", *EXACT, "--json", "--context", "256", "--stride", "100", "long.txt", "-",
        stdin=short,
    )  # fmt: skip
    report = json.loads(done.stdout)
    validate(report, "score")
    assert [each["text"] for each in report["texts"]] == ["long.txt", "-"]
    for each, text in zip(report["texts"], (long, short.replace("\r", "")), strict=True):
        ids = demo_tokenizer()(text, split_special_tokens=True)["input_ids"]
        expected = expected_logprob(demo_fp32(), ids, 256, 100)
        assert (each["tokens"], each["bytes"]) == (len(ids) - 1, len(text.encode()))
        assert each["logprob"] / each["tokens"] == pytest.approx(expected / each["tokens"], abs=1e-3)
        assert each["perplexity"] == pytest.approx(math.exp(-expected / each["tokens"]), rel=1e-3)
        assert each["bits_per_byte"] == pytest.approx(-expected / math.log(2) / each["bytes"], rel=1e-3)
    assert report["total"]["tokens"] == sum(each["tokens"] for each in report["texts"])
    assert report["total"]["logprob"] == pytest.approx(sum(each["logprob"] for each in report["texts"]))


def test_a_table_has_a_row_for_each_text_and_the_total(program: Program) -> None:
    for name in ("a.txt", "b.txt"):
        (program.folder / name).write_text(f"Who are you? {name}")
    lines = program("score", "-m", "demo", *EXACT, "a.txt", "b.txt").stdout.splitlines()
    assert [line.split()[-1] for line in lines] == ["text", "a.txt", "b.txt", "total"]
    assert [len(line.split()) for line in lines] == [4, 4, 4, 4]


def test_what_cannot_be_scored_is_refused_before_the_model_is_loaded(program: Program) -> None:
    (program.folder / "empty.txt").touch()
    (program.folder / "text.txt").write_text("text")
    write_gguf(program.folder / "tiny.gguf", tiny("gemma2"), Q8_0)
    (program.config / "models.toml").write_text('[board]\nendpoint = "http://127.0.0.1:1"\n')
    refused = {
        (): "No text given.",
        ("empty.txt",): "empty.txt is empty.",
        ("missing.txt",): "Cannot read missing.txt",
        ("text.txt", "--stride", "1024"): "--stride must be between 1 and 1023 (got 1024).",
        ("text.txt", "--stride", "0"): "--stride must be between 1 and 1023 (got 0).",
        ("text.txt", "-m", "tiny.gguf"): "llama.cpp does not report the probabilities of a text",
        ("text.txt", "-m", "board"): "board is a server's model",
    }
    for words, message in refused.items():
        done = program("score", "-m", "demo", *words)
        assert (done.returncode in (2, 4), done.stdout) == (True, ""), words
        assert message in done.stderr


@pytest.mark.slow
def test_a_real_gemma_scores_prose_as_transformers_does(real_checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(real_checkpoint, dtype=torch.float32).eval()
    plan = plan_for(real_checkpoint, "exact", dtype="float32", context=256)
    backend = load_backend(plan, real_checkpoint, lambda _: None)
    score = backend.score_text(PROSE[:3000], 128, lambda _done, _all: None)
    ids = [*backend._prompter.begin_ids, *backend._prompter.encode_answer(PROSE[:3000])]
    expected = expected_logprob(model, ids, 256, 128)
    assert score.tokens == len(ids) - 1 > 500
    assert score.logprob / score.tokens == pytest.approx(expected / score.tokens, abs=1e-3)
    assert 10 < score.perplexity < 60
