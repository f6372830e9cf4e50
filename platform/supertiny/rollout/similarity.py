"""Near-duplicate texts, exactly: an all-pairs search by Jaccard similarity.

Prefix filtering (Chaudhuri, Ganti, Kaushik, ICDE 2006; Bayardo, Ma, Srikant, Scaling Up All Pairs Similarity Search, WWW 2007): two sets
whose Jaccard similarity is at least t share at least ceil(t·|x|) elements, so the |x| - ceil(t·|x|) + 1 rarest of each have one in common.
No seed, no pair missed, and the order of the texts does not matter; MinHash gives that up to be faster on long ones.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Mapping

SHINGLE_CHARS = 5


def shingles(text: str) -> frozenset[str]:
    """All runs of 5 characters, case and the length of white space aside; a shorter text is one shingle."""
    plain = " ".join(text.casefold().split())
    return frozenset(plain[at : at + SHINGLE_CHARS] for at in range(max(1, len(plain) - SHINGLE_CHARS + 1)))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Shared elements over all elements of two sets, not both empty, in [0, 1]."""
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


def near_duplicates(texts: Mapping[str, str], max_similarity: float) -> dict[str, tuple[str, float]]:
    """For each text that is more similar than `max_similarity` to a text that is kept: that one's name and the similarity.

    Texts are taken in the order of their names, and kept unless they are such a duplicate of one kept before.

    Args:
        texts: by name; the names decide which of two is kept, and so nothing else does.
        max_similarity: Jaccard similarity of `shingles`, in (0, 1).
    """
    sets = {name: shingles(text) for name, text in sorted(texts.items())}
    frequency = Counter(shingle for own in sets.values() for shingle in own)
    kept_with: defaultdict[str, list[str]] = defaultdict(list)
    found = {}
    for name, own in sets.items():
        length = len(own) - math.ceil(max_similarity * len(own) - 1e-9) + 1
        rarest = heapq.nsmallest(length, own, key=lambda shingle: (frequency[shingle], shingle))
        candidates = {other for shingle in rarest for other in kept_with.get(shingle, ())}
        closest = min(((-jaccard(own, sets[other]), other) for other in candidates), default=(0.0, ""))
        if -closest[0] > max_similarity:
            found[name] = (closest[1], -closest[0])
            continue
        for shingle in rarest:
            kept_with[shingle].append(name)
    return found
