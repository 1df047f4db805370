"""The API as the official OpenAI client sees it. Run by tests/scripts/test-openai.sh against a worker on the real model."""
import openai
import pytest

from support import MODEL, PROMPT, chat, complete, tokenize


def test_models_are_listed(client):
    assert [m.id for m in client.models.list().data] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_a_completion_has_text_usage_and_the_profile(client):
    answer = complete(client)
    assert answer.choices[0].text.startswith(" Paris")
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.total_tokens == 5 + answer.usage.completion_tokens
    assert answer.system_fingerprint == "fp_modelprofile_quality"


def test_streaming_gives_the_same_text_and_the_usage_last(client):
    whole = complete(client).choices[0].text
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole
    assert chunks[-1].usage.prompt_tokens == 5 and not chunks[-1].choices


def test_chat_streams_a_role_then_content(client):
    whole = chat(client).choices[0].message
    assert whole.role == "assistant" and whole.content
    deltas = [c.choices[0] for c in chat(client, stream=True)]
    assert deltas[0].delta.role == "assistant"
    assert "".join(d.delta.content or "" for d in deltas) == whole.content
    assert deltas[-1].finish_reason in ("stop", "length")


def test_stop_strings_end_the_text_across_token_borders(client):
    whole = complete(client, max_tokens=24).choices[0].text
    stop = whole[5:9]
    answer = complete(client, max_tokens=24, stop=[stop]).choices[0]
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"


def test_n_with_a_seed_is_reproducible(client):
    def texts():
        answer = complete(client, n=3, seed=11, temperature=1.0, max_tokens=12)
        return [c.text for c in sorted(answer.choices, key=lambda c: c.index)]

    first = texts()
    assert len(first) == 3 and len(set(first)) > 1
    assert texts() == first


def test_logprobs_of_a_completion_are_sorted_and_consistent(client):
    scores = complete(client, logprobs=3, max_tokens=4).choices[0].logprobs
    assert len(scores.tokens) == len(scores.token_logprobs) == 4
    for token, logprob, top in zip(scores.tokens, scores.token_logprobs, scores.top_logprobs):
        assert top[token] == pytest.approx(logprob) and logprob == max(top.values())


def test_chat_logprobs_carry_bytes(client):
    content = chat(client, logprobs=True, top_logprobs=2, max_tokens=4).choices[0].logprobs.content
    assert len(content) == 4
    for entry in content:
        assert bytes(entry.bytes).decode(errors="replace") == entry.token
        assert len(entry.top_logprobs) == 2


def test_echo_scores_a_prompt_without_generating(client):
    answer = complete(client, echo=True, logprobs=1, max_tokens=0)
    scores = answer.choices[0].logprobs
    assert answer.choices[0].text == PROMPT
    assert len(scores.tokens) == 5 and scores.token_logprobs[0] is None
    assert all(s < 0 for s in scores.token_logprobs[1:])
    assert scores.text_offset == [0, 3, 11, 14, 21]


def test_a_strong_bias_and_a_penalty_change_the_choice(client):
    base = complete(client, max_tokens=1).choices[0].text
    token = str(tokenize(base)[0])
    assert complete(client, max_tokens=1, logit_bias={token: -100}).choices[0].text != base
    looped = complete(client, prompt="one two three " * 8, max_tokens=24).choices[0].text
    penalized = complete(client, prompt="one two three " * 8, max_tokens=24, frequency_penalty=2.0, presence_penalty=2.0)
    assert penalized.choices[0].text != looped


@pytest.mark.parametrize(
    "options, param",
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"extra_body": {"guided_json": {}}}, "guided_json"),
        ({"stop": ""}, "stop"),
        ({"best_of": 3}, "best_of"),
        ({"max_tokens": 100_000}, "prompt"),
    ],
)
def test_what_is_not_possible_is_refused_by_name(client, options, param):
    with pytest.raises(openai.BadRequestError) as error:
        complete(client, **options)
    assert error.value.body["message"]
    assert error.value.body["param"] == param


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError):
        complete(client, model="gpt-4")


def test_a_tool_is_refused(client):
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, tools=[{"type": "function", "function": {"name": "f"}}])
    assert error.value.body["param"] == "tools"
