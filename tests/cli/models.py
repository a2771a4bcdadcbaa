"""The models that the commands run."""

from __future__ import annotations

import time

import numpy as np


def echo(arrays):
    return arrays


def double(arrays):
    return {"y": arrays["x"] * 2}


def describe(arrays):
    return {name: np.array([str(array.dtype)], dtype=object) for name, array in arrays.items()}


def split(arrays):
    return {"first": arrays["x"][:, :1], "../rest": arrays["x"][:, 1:]}


def poet(arrays):
    """Send the words, and the end."""
    yield from (f"{word} " for word in str(arrays["text"][0]).split())
    yield None


def bard(arrays):
    """Say the words, and just end."""
    yield from str(arrays["text"][0]).split()


def slow(arrays):
    time.sleep(0.2)
    return arrays


MODELS = {model.__name__: model for model in (echo, double, describe, split, poet, bard, slow)}
