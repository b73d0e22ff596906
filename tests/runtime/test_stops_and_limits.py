"""Stop strings over any cut of the text; limits that name the value and the recipe's key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmc.bundle.manifest import Limits
from vlmc.errors import VlmcError
from vlmc.runtime.limits import DEFAULT_NEW_TOKENS, answer_room, check_images
from vlmc.runtime.stops import Stops

LIMITS = Limits(prefill_seq_len=8, ctx_len=100, batch_size=1, max_images=2)


def play(strings, pieces):
    stops = Stops(strings)
    shown = ""
    for piece in pieces:
        text, stopped = stops.feed(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + stops.flush(), False


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.text("ab", max_size=3), max_size=12),
)
def test_nothing_of_a_stop_string_is_shown_and_nothing_else_is_lost(strings, pieces):
    shown, stopped = play(strings, pieces)
    text = "".join(pieces)
    assert stopped == any(string in text for string in strings)
    assert not any(string in shown for string in strings)
    assert text.startswith(shown)
    if stopped:
        assert any(text.startswith(string, len(shown)) for string in strings)
    else:
        assert shown == text


def test_text_is_held_back_no_longer_than_it_must():
    stops = Stops(["STOP"])
    assert stops.feed("abcST") == ("abc", False)
    assert stops.feed("O") == ("", False)
    assert stops.feed("X ST") == ("STOX ", False)
    assert stops.feed("OP more") == ("", True)


@pytest.mark.parametrize("strings", ["abc", [""], ["x" * 1025], [3], ["x"] * 17, [None]])
def test_stop_strings_that_make_no_sense_are_refused(strings):
    with pytest.raises(VlmcError) as caught:
        Stops(strings)
    assert caught.value.at == "stop"


def test_room_for_an_answer():
    assert answer_room(10, 5, LIMITS) == 5
    assert answer_room(10, 90, LIMITS) == 90
    assert answer_room(10, 91, LIMITS) == 90
    assert answer_room(99, None, LIMITS) == 1
    roomy = LIMITS.model_copy(update={"ctx_len": 10_000})
    assert answer_room(10, None, roomy) == DEFAULT_NEW_TOKENS == 256


def test_a_prompt_that_does_not_fit_names_everything():
    for length in (100, 101, 5000):
        with pytest.raises(VlmcError) as caught:
            answer_room(length, 1, LIMITS)
        text = str(caught.value)
        assert str(length) in text
        assert "100" in text
        assert "'ctx-len'" in text


def test_exactly_so_many_tokens_must_fit():
    assert answer_room(10, 90, LIMITS, all_of_them=True) == 90
    with pytest.raises(VlmcError, match="91 tokens after a prompt of 10"):
        answer_room(10, 91, LIMITS, all_of_them=True)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, float("nan"), "7", 2**31])
def test_a_number_of_tokens_is_a_number(value):
    with pytest.raises(VlmcError) as caught:
        answer_room(10, value, LIMITS)
    assert caught.value.at == "max-new-tokens"


def test_an_empty_prompt_is_refused():
    with pytest.raises(VlmcError, match="empty"):
        answer_room(0, 1, LIMITS)


def test_too_many_images_name_the_key():
    check_images(2, LIMITS)
    with pytest.raises(VlmcError) as caught:
        check_images(3, LIMITS)
    assert "3 images" in str(caught.value)
    assert "takes 2" in str(caught.value)
    assert "'images.max-per-prompt'" in str(caught.value)
