"""The log-probabilities of tokens that are given instead of sampled.

llama.cpp reports probabilities only of tokens that it samples, so each token is a request in which no other
can be sampled. What it reports is computed before that.
"""

from collections.abc import Mapping, Sequence
from math import exp, log
from threading import Event as Cancel

from localgemma_cli.backends.llamacpp.completion import Completion
from localgemma_cli.backends.llamacpp.process import LlamaProcess
from localgemma_cli.backends.scored_token import ScoredToken
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.prompts.tokenizer import Tokenizer
from localgemma_cli.sampling import Sampling

# Added to logits: nothing else can be sampled; two tokens are ahead of all others, and one of the other.
_CERTAIN, _AHEAD, _GAP = 1e6, 200.0, 20.0
_MANY = 20  # likeliest tokens, of which at least one is a whole character


def score_answer(
    process: LlamaProcess, prompter: Prompter, prompt: Sequence[int], answer: Sequence[int]
) -> float:
    """The natural logarithm of the probability of `answer`, and of any token that ends it. AnswerBroken."""
    ids, total = list(prompt), 0.0
    for token in answer:
        total += score_next(process, prompter, ids, token).logprob
        ids.append(token)
    ends = [score_next(process, prompter, ids, token).logprob for token in sorted(prompter.stop_ids)]
    likeliest = max(ends)
    return total + likeliest + log(sum(exp(each - likeliest) for each in ends))  # 0 would have no logarithm


def score_next(
    process: LlamaProcess, prompter: Prompter, prompt: Sequence[int], token: int, alternatives: int = 0
) -> ScoredToken:
    """The log-probability of `token` after `prompt`, and those of so many of the likeliest. AnswerBroken."""
    if not _is_part(prompter.tokenizer, token):
        return _sampled(process, prompter, _request(prompt, {token: _CERTAIN}, max(alternatives, 1)))
    # llama.cpp does not report a part of a character: compare it with the likeliest whole token
    letter = prompter.tokenizer.encode("a")[-1]
    known = _sampled(process, prompter, _request(prompt, {letter: _CERTAIN}, max(alternatives, _MANY)))
    whole = (each for each in known.top if not _is_part(prompter.tokenizer, each[0]))
    other, logprob = next(
        (each for each in whole if each[0] not in prompter.stop_ids), (letter, known.logprob)
    )
    pair = _request(prompt, {other: _AHEAD + _GAP, token: _AHEAD}, 2) | {
        "top_k": 2,
        "post_sampling_probs": True,
    }
    both = dict(_sampled(process, prompter, pair).top)
    return ScoredToken(token, logprob + both[token] - both[other] + _GAP, known.top)


def _is_part(tokenizer: Tokenizer, token: int) -> bool:
    data = tokenizer.bytes_of(token)
    return len(data) == 1 and not data.isascii()


def _sampled(process: LlamaProcess, prompter: Prompter, request: dict[str, object]) -> ScoredToken:
    completion = Completion(process, prompter, Cancel(), Sampling())
    for _ in completion.tokens(request):
        pass
    (scored,) = completion.scored
    assert scored is not None
    return scored


def _request(prompt: Sequence[int], bias: Mapping[int, float], reported: int) -> dict[str, object]:
    """The request for the likeliest token after `prompt`, once `bias` is added to the logits."""
    return {
        "prompt": [list(prompt)],
        "max_tokens": 1,
        "stream": True,
        "cache_prompt": True,
        "return_progress": True,
        "logprobs": reported,
        "logit_bias": [[token, value] for token, value in bias.items()],
        "samplers": ["top_k"],
        "top_k": 1,
    }
