"""Errors of the user: one sentence of three parts, also across processes."""

import pickle

import pytest

from linearard import errors

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.UserError)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_parts_and_sentence(kind):
    error = kind(expected="a number", got="'x'", fix="Give a number.")
    assert str(error) == "expected a number, got 'x'. Give a number."
    assert isinstance(error, ValueError)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error)
    assert (again.expected, again.got, again.fix) == ("a number", "'x'", "Give a number.")


def test_there_are_several_kinds_and_each_says_what_it_is_for():
    assert len(KINDS) > 5
    assert all(kind.__doc__ for kind in KINDS)
