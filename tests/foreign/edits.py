"""What people and faulty disks do to files: single edits of JSON, cut and flipped bytes."""

import copy

from hypothesis import strategies as st

OTHER = (
    None, True, 0, -1, 1, 3, 10**6, 2**63, 10**30, 10**400, -2.5, 1e308, float("nan"), "", "x", "3",
    "fp16", [], [1], [None], {}, {"a": 1}, {"type": "x"}, {"type": []}, {"type": "load"},
    {"type": "Unet"}, {"type": "LearnedText"}, {"type": "StoredText", "dim": 4},
    {"type": "NullUnet"}, {"type": "Recipe"}, {"type": "UserError"},
)  # fmt: skip


def places(value, path=()):
    """The path of every value within a JSON value, itself first."""
    yield path
    if isinstance(value, dict):
        inside = value.items()
    else:
        inside = enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield from places(one, (*path, key))


def edits(value, other=OTHER):
    """JSON values that differ from one in a single place: another value there, or none."""
    return st.tuples(st.sampled_from(list(places(value))), st.sampled_from([*other, "DELETE"])).map(
        lambda edit: _edited(value, *edit)
    )


def damaged(content):
    """Bytes that were cut short, or of which a few were changed."""
    at = st.integers(0, len(content) - 1)

    def changed(changes):
        found = bytearray(content)
        for place, byte in changes:
            found[place] = byte
        return bytes(found)

    flips = st.lists(st.tuples(at, st.integers(0, 255)), min_size=1, max_size=4).map(changed)
    text = st.tuples(at, st.sampled_from(b'0129{}[]",: -ntfle')).map(lambda one: changed([one]))
    return st.one_of(at.map(lambda end: content[:end]), flips, text)


def _edited(value, path, other):
    if not path:
        return None if other == "DELETE" else other
    found = node = copy.deepcopy(value)
    for key in path[:-1]:
        node = node[key]
    if other == "DELETE":
        del node[path[-1]]
    else:
        node[path[-1]] = other
    return found
