from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.architecture import COMBINES, Architecture
from moa_dspy.errors import ArchitectureError

NAMES = st.text(min_size=1, max_size=8).filter(
    lambda name: not any(c.isspace() or c in ">+*()" for c in name)
)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Any architecture that can be built, over a few names so that they repeat."""
    names = st.sampled_from(draw(st.lists(NAMES, min_size=1, max_size=3)))
    layer = st.lists(names, min_size=1, max_size=4).map(tuple)
    layers = tuple(draw(st.lists(layer, max_size=3)))
    if not layers:
        return Architecture.single(draw(names))
    combine = draw(st.sampled_from(COMBINES))
    order = tuple(draw(st.lists(st.sampled_from(layers[-1]), unique=True)))
    if combine == "synthesize":
        return Architecture(layers, draw(names), combine, order, draw(st.none() | NAMES))
    someone = names if combine == "select" else st.sampled_from(layers[-1])
    return Architecture(layers, draw(st.none() | someone), combine, order)


def seating(architecture: Architecture) -> tuple[object, ...]:
    """All that decides what is sent, and in which order."""
    return (architecture, architecture.layers, architecture.reading, architecture.order)


@given(architectures())
def test_parse_reads_what_str_writes(architecture: Architecture) -> None:
    assert seating(Architecture.parse(str(architecture))) == seating(architecture)


@given(architectures())
def test_from_json_rebuilds_what_to_json_returned(architecture: Architecture) -> None:
    rebuilt = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
    assert seating(rebuilt) == seating(architecture)


@given(architectures(), st.randoms(use_true_random=False))
def test_order_inside_a_layer_is_kept_and_does_not_count_when_comparing(
    architecture: Architecture, random: object
) -> None:
    shuffled = tuple(
        tuple(sorted(layer, key=lambda _: random.random()))  # type: ignore[attr-defined]  # a Random
        for layer in architecture.layers
    )
    other = Architecture(
        shuffled, architecture.aggregator, architecture.combine, prompt=architecture.prompt
    )
    assert other.layers == shuffled
    same = replace(architecture, order=())
    assert (other, hash(other), str(other.canonical)) == (same, hash(same), str(same.canonical))


@given(architectures())
def test_the_canonical_form_is_the_one_that_is_sorted(architecture: Architecture) -> None:
    canonical = architecture.canonical
    assert canonical == architecture
    assert seating(canonical.canonical) == seating(canonical)
    assert canonical.layers == tuple(tuple(sorted(layer)) for layer in architecture.layers)
    assert Architecture.parse(str(canonical)).layers == canonical.layers


def test_an_order_counts_when_comparing_and_is_read_whatever_the_seats() -> None:
    layer = ("z", "a", "m")
    ordered = Architecture((layer,), "a", order=layer)
    assert ordered != Architecture((layer,), "a")
    # By name, a and m would follow a z that is named: so its name is all that is kept.
    assert str(ordered) == "z + a + m > synthesize(a; order=z)"
    for one in (ordered, ordered.canonical):
        assert [one.layers[-1][seat] for seat in one.reading] == ["z", "a", "m"]
    first = Architecture.parse("z + m + a > synthesize(a; order=a)")
    assert [first.layers[-1][seat] for seat in first.reading] == ["a", "z", "m"]


def test_order_of_layers_does_matter() -> None:
    assert Architecture.parse("a > b > vote") != Architecture.parse("b > a > vote")


@pytest.mark.parametrize(
    ("text", "canonical", "depth", "calls"),
    [
        # calls: proposers of all layers, plus one where a model takes the last step
        ("a", "a", 0, 1),
        ("select", "select", 0, 1),  # alone it is a name like any other
        ("b + a > synthesize(c)", "a + b > synthesize(c)", 1, 3),
        (" a*2+b+a>vote ", "a*3 + b > vote", 1, 4),
        ("b*2 + a + b > vote", "a + b*3 > vote", 1, 4),
        ("a + b > vote(b)", "a + b > vote(b)", 1, 2),
        ("a*2 > select", "a*2 > select", 1, 2),
        ("a * 2 > select(a)", "a*2 > select(a)", 1, 3),
        ("b + a > d*3 > synthesize(a)", "a + b > d*3 > synthesize(a)", 2, 6),
        (
            "a + b > synthesize(c; order=b a;  prompt=p)",
            "a + b > synthesize(c; order=b; prompt=p)",
            1,
            3,
        ),
        ("a + b > select(; order=a b)", "a + b > select", 1, 2),
        ("a + b + c > vote(; order=b)", "a + b + c > vote(; order=b)", 1, 3),
    ],
)
def test_the_notation_has_one_canonical_form(
    text: str, canonical: str, depth: int, calls: int
) -> None:
    architecture = Architecture.parse(text)
    form = architecture.canonical
    assert (str(form), form.depth, form.calls) == (canonical, depth, calls)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("b + a > synthesize(c)", "b + a > synthesize(c)"),
        (" a*2+b+a>vote ", "a*2 + b + a > vote"),
        ("a + a + b > d + c > select(a)", "a*2 + b > d + c > select(a)"),
        ("b + a > select(; order=b a)", "b + a > select(; order=b)"),
    ],
)
def test_the_notation_keeps_the_order_of_the_seats(text: str, written: str) -> None:
    assert str(Architecture.parse(text)) == written


def test_the_last_step_reads_in_the_order_given_then_as_they_sit() -> None:
    architecture = Architecture.parse("a + b*2 + c > vote(; order=c)")
    assert [architecture.layers[-1][seat] for seat in architecture.reading] == ["c", "a", "b", "b"]
    assert Architecture.single("a").reading == ()


def test_agents_are_everyone_who_sits_somewhere_once() -> None:
    assert Architecture.parse("c*2 > b + c > synthesize(a)").agents == ("a", "b", "c")
    assert Architecture.parse("c > vote").agents == ("c",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"Agent name '' must not be empty"),
        ("a b", r"Agent name 'a b' must not be empty or hold spaces or any of > \+ \* \( \)"),
        ("a > b", r"The last part of 'a > b' must be synthesize\(NAME\).*but got 'b'"),
        ("a > ", r"The last part of 'a > ' must be .*but got ''"),
        ("a > synthesize", r"`aggregator` must name an agent, but got None"),
        ("a > synthesize()", r"but got 'synthesize\(\)'"),
        ("a > melt(b)", r"but got 'melt\(b\)'"),
        (" > vote", r"Agent name '' must not be empty"),
        ("a + > vote", r"Agent name '' must not be empty"),
        ("a*0 > vote", r"'a\*0' must read NAME or NAME\*COUNT"),
        ("a*x > vote", r"'a\*x' must read NAME or NAME\*COUNT"),
        ("a*-1 > vote", r"'a\*-1' must read NAME or NAME\*COUNT"),
        ("a* > vote", r"'a\*' must read NAME or NAME\*COUNT"),
        ("a + b > vote(c)", r"'c' cannot decide ties: .* last layer's proposers, a, b"),
        ("c > a > vote(c)", r"'c' cannot decide ties: .* last layer's proposers, a\."),
        ("c > a > vote(a; order=c)", r"`order` must name agents of the last layer, a, each once"),
        ("a + b > vote(a; order=b b)", r"each once, but got b, b"),
        ("a > vote(a; prompt=p)", r"`prompt` goes with an aggregator that synthesizes"),
        ("a > synthesize(a; prompt=p q)", r"Prompt name 'p q' must not be empty"),
        ("a > synthesize(a; prompt=)", r"Prompt name '' must not be empty"),
        ("a > synthesize(a; pormpt=p)", r"knows order=NAME NAME and prompt=NAME, but got 'pormpt'"),
    ],
)
def test_a_text_that_is_no_architecture_is_refused_with_the_part(text: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        Architecture.parse(text)


def test_a_value_that_is_no_architecture_is_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"`layers\[1\]` must name at least one agent"):
        Architecture((("a",), ()), "b")
    with pytest.raises(ArchitectureError, match="Unknown combine 'mix'; known ones are synthesize"):
        Architecture((("a",),), "b", "mix")
    with pytest.raises(ArchitectureError, match="A single agent has nothing to vote among"):
        Architecture((), "a", "vote")
    with pytest.raises(ArchitectureError, match="`aggregator` must name an agent, but got None"):
        Architecture((), None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "has the keys layers, aggregator, combine, but got"),
        ({"layers": [], "aggregator": "a"}, "has the keys layers, aggregator, combine"),
        ({"layers": [], "aggregator": "a", "combine": "synthesize", "x": 1}, "has the keys"),
        ({"layers": ["ab"], "aggregator": "a", "combine": "vote"}, "must be lists of names"),
        ({"layers": 3, "aggregator": "a", "combine": "vote"}, "must be lists of names"),
        ({"layers": [[1]], "aggregator": None, "combine": "vote"}, "must be lists of names"),
        ({"layers": [["a"]], "aggregator": 1, "combine": "select"}, "`aggregator` a name"),
        ({"layers": [["a"]], "aggregator": None, "combine": []}, "Unknown combine"),
    ],
)
def test_json_that_is_no_architecture_is_refused(value: object, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        Architecture.from_json(value)
