"""Random numbers for scenes, from streams that are the same in every version of NumPy."""

from __future__ import annotations

import hashlib
import math

import numpy as np


def random_stream(seed: int, split: str, index: int, stream: str) -> np.random.Generator:
    """A random stream of one scene. The key is hashed, so different keys give independent streams."""
    digest = hashlib.sha256(f"{seed}/{index}/{stream}/{split}".encode()).digest()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(int.from_bytes(digest, "big"))))


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number in [low, high).

    All functions for layouts use ``rng.random`` only: its stream is the same in every version of NumPy.
    """
    return low + (high - low) * float(rng.random())


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number in [low, high), uniform in its logarithm."""
    return math.exp(uniform(rng, math.log(low), math.log(high)))


def integer(rng: np.random.Generator, low: int, high: int) -> int:
    """An integer in [low, high]."""
    return low + int(rng.random() * (high - low + 1))


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with the given probability."""
    return float(rng.random()) < probability


def shuffled(rng: np.random.Generator, items: list[int]) -> list[int]:
    """The items in random order."""
    return [items[i] for i in np.argsort(rng.random(len(items)), kind="stable")]
