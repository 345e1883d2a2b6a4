"""The log-probabilities of tokens that are given instead of sampled.

llama.cpp reports probabilities only of tokens that it samples, so each token is a request in which no other
can be sampled. What it reports is computed before that.
"""

from collections.abc import Sequence
from math import exp, log
from threading import Event as Cancel

from localgemma_cli.backends.llamacpp.completion import Completion
from localgemma_cli.backends.llamacpp.process import LlamaProcess
from localgemma_cli.backends.scored_token import ScoredToken
from localgemma_cli.prompts.prompter import Prompter

_CERTAIN = 1e6  # added to a logit


def score_answer(
    process: LlamaProcess, prompter: Prompter, prompt: Sequence[int], answer: Sequence[int]
) -> float:
    """The natural logarithm of the probability of `answer`, and of any token that ends it. AnswerBroken."""
    ids, total = list(prompt), 0.0
    for token in answer:
        total += score_next(process, prompter, ids, token).logprob
        ids.append(token)
    ends = (score_next(process, prompter, ids, token).logprob for token in sorted(prompter.stop_ids))
    return total + log(sum(map(exp, ends)))


def score_next(
    process: LlamaProcess, prompter: Prompter, prompt: Sequence[int], token: int, alternatives: int = 0
) -> ScoredToken:
    """The log-probability of `token` after `prompt`, and those of so many of the likeliest. AnswerBroken."""
    completion = Completion(process, prompter, Cancel())
    for _ in completion.tokens(_forced_request(prompt, token, alternatives)):
        pass
    (scored,) = completion.scored
    assert scored is not None
    assert scored.id == token  # nothing else can be sampled
    return scored


def _forced_request(prompt: Sequence[int], token: int, alternatives: int) -> dict[str, object]:
    return {
        "prompt": [list(prompt)],
        "max_tokens": 1,
        "stream": True,
        "cache_prompt": True,
        "return_progress": True,
        "logprobs": max(alternatives, 1),  # 0 would report none
        "logit_bias": [[token, _CERTAIN]],
        "samplers": ["top_k"],
        "top_k": 1,
    }
