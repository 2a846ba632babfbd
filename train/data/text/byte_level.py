"""The alphabet of byte-level tokens, as GPT-2 chose it."""

import functools


@functools.cache
def byte_of() -> dict[str, int]:
    """Returns the byte that each character of a byte-level token stands for.

    Source: Radford et al., 'Language Models are Unsupervised Multitask Learners', 2019.
    """
    # Printable Latin-1 characters stand for themselves, without the space and the soft hyphen.
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]

    # The others would vanish in a file of tokens: they borrow the characters from U+0100 on.
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
