"""Random seeds that depend only on (seed, purpose, epoch, step), so that runs can be resumed."""

import hashlib

import numpy as np


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for one purpose: equal paths give equal seeds, different paths give unrelated seeds."""
    text = "/".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_generator(seed: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.default_rng(derive(seed, *path))


def faiss_seed(seed: int, *path: str | int) -> int:
    """A positive 31-bit seed, as faiss requires."""
    return derive(seed, *path) % (2**31 - 1) + 1
