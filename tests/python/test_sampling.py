"""What the parameters of sampling and scoring do to the real model's output."""
import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import PROMPT, chat, complete, tokenize

# Patterns long enough that the model goes on with them. A penalty of two logits does not part each model from each of them,
# and which it does hangs on the rounding of this processor's sums.
LOOPS = [{"prompt": pattern * 8, "max_tokens": 24} for pattern in ("one two three ", "red, green, blue, ", "ab ab cd ", "yes no ")]


@pytest.mark.parametrize(
    "options",
    [{"frequency_penalty": 2.0}, {"presence_penalty": 2.0}, {"extra_body": {"repetition_penalty": 2.0}}],
    ids=["frequency", "presence", "repetition"],
)
def test_each_penalty_breaks_a_loop(client, options):
    broken = [complete(client, **loop, **options).choices[0].text != complete(client, **loop).choices[0].text for loop in LOOPS]
    assert any(broken), broken


def test_a_banned_token_never_comes_and_a_forced_one_always(client):
    answer = complete(client, logprobs=0, max_tokens=12)
    ours, banned = answer.choices[0].text, tokenize(" Paris")[0]
    assert ours.startswith(" Paris")
    without = complete(client, logit_bias={str(banned): -100}, logprobs=0, max_tokens=12).choices[0]
    assert " Paris" not in without.logprobs.tokens
    forced = tokenize(" green")[0]
    only = complete(client, logit_bias={str(forced): 100}, max_tokens=4).choices[0].text
    assert only == " green" * 4


def test_a_seed_repeats_its_text_whatever_else_runs(client):
    def text(seed):
        return complete(client, seed=seed, temperature=1.0, max_tokens=16).choices[0].text

    alone = [text(seed) for seed in range(3)]
    assert len(set(alone)) == 3
    with ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(text, [0, 1, 2, 0, 1, 2, 0, 1]))
    assert crowd == [alone[seed % 3] for seed in range(8)]


def test_the_alternatives_of_a_token_are_distinct_and_sum_to_less_than_one(client):
    content = chat(client, logprobs=True, top_logprobs=20, max_tokens=6).choices[0].logprobs.content
    assert len(content) == 6
    for entry in content:
        top = [t.logprob for t in entry.top_logprobs]
        assert len(top) == 20 and top == sorted(top, reverse=True)
        assert 0.1 < sum(map(math.exp, top)) < 1 + 1e-4
        # Greedy, so the token is its own first alternative.
        assert (entry.token, entry.logprob) == (entry.top_logprobs[0].token, top[0])


def test_the_scores_of_an_output_are_those_of_the_same_text_as_a_prompt(client):
    generated = complete(client, logprobs=1, max_tokens=6).choices[0]
    whole = complete(client, prompt=PROMPT + generated.text, echo=True, logprobs=1, max_tokens=0).choices[0].logprobs
    scored = whole.token_logprobs[-6:]
    assert whole.tokens[-6:] == generated.logprobs.tokens
    # One token a step or all in one: sums in another order, so not to the last bit.
    assert scored == pytest.approx(generated.logprobs.token_logprobs, abs=0.05)


def test_a_text_scores_the_same_alone_and_in_a_batch(client):
    """As lm-evaluation-harness asks: the prompt echoed with its log-probabilities, nothing generated."""
    texts = ["The capital of France is Paris.", "Water boils at a hundred degrees.", "x", "One two three four " * 12]
    options = {"max_tokens": 0, "echo": True, "logprobs": 1}

    def total(choice):
        assert choice.logprobs.token_logprobs[0] is None
        # What the harness reads as well: whether the text is what greedy sampling gives.
        for score, top in zip(choice.logprobs.token_logprobs[1:], choice.logprobs.top_logprobs[1:]):
            assert score <= max(top.values())
        return sum(choice.logprobs.token_logprobs[1:])

    alone = [total(complete(client, prompt=text, **options).choices[0]) for text in texts]
    assert all(score < 0 for text, score in zip(texts, alone) if text != "x")
    batch = complete(client, prompt=texts, **options).choices
    assert [c.text for c in sorted(batch, key=lambda c: c.index)] == texts
    assert [total(c) for c in sorted(batch, key=lambda c: c.index)] == alone
    tokens = complete(client, prompt=[tokenize(text) for text in texts], **options).choices
    assert [total(c) for c in sorted(tokens, key=lambda c: c.index)] == alone


def test_several_stop_strings_and_choices_count_what_was_generated(client):
    answer = complete(client, n=2, seed=3, temperature=0.7, max_tokens=24, stop=[".", ","])
    assert answer.usage.completion_tokens <= 48 and answer.usage.prompt_tokens == 5
    for choice in answer.choices:
        assert "." not in choice.text and "," not in choice.text
        assert choice.finish_reason in ("stop", "length")
