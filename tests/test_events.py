"""The meter that times an answer, the same one for every backend."""

import time

from localgemma_cli.events import RateMeter


def test_the_rate_excludes_the_wait_for_the_first_token() -> None:
    meter = RateMeter()
    time.sleep(0.02)
    for _ in range(3):
        meter.tick()
        time.sleep(0.02)
    timing = meter.timing(3)
    assert timing.decode_tokens_per_second is not None
    assert timing.time_to_first_token_seconds >= 0.02
    assert timing.total_seconds >= 0.08
    assert 2 / timing.total_seconds < timing.decode_tokens_per_second <= 2 / 0.04


def test_the_rate_uses_the_tokens_that_were_counted_and_not_the_pieces_that_came() -> None:
    meter = RateMeter()
    meter.tick()
    time.sleep(0.02)
    meter.tick()
    few, many = meter.timing(2), meter.timing(21)
    assert few.decode_tokens_per_second
    assert many.decode_tokens_per_second
    assert round(many.decode_tokens_per_second / few.decode_tokens_per_second) == 20


def test_there_is_no_rate_without_a_count_or_with_fewer_than_two_tokens() -> None:
    meter = RateMeter()
    meter.tick()
    assert meter.timing(None).decode_tokens_per_second is None
    assert meter.timing(1).decode_tokens_per_second is None
    meter.tick()
    assert meter.timing(0).decode_tokens_per_second is None
