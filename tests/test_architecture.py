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

WEIGHTS = st.floats(min_value=1e-300, max_value=1e300) | st.integers(1, 3).map(float)


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
    if combine in ("fuse", "knockout"):
        analyst = draw(st.none() | names) if combine == "fuse" else None
        return Architecture(layers, draw(names), combine, order, analyst=analyst)
    someone = names if combine == "select" else st.sampled_from(layers[-1])
    aggregator, n = draw(st.none() | someone), len(layers[-1])
    stops = n > 2 and (combine == "vote" or aggregator is None)
    agree = draw(st.none() | st.integers(2, n - 1)) if stops else None
    weighed = draw(st.lists(st.sampled_from(layers[-1]), unique=True)) if combine == "vote" else []
    weights = tuple((name, draw(WEIGHTS)) for name in weighed)
    leads = st.floats(0, 1, exclude_min=True, exclude_max=True)
    lead = draw(st.none() | leads) if combine == "vote" and agree is None else None
    return Architecture(layers, aggregator, combine, order, weights=weights, agree=agree, lead=lead)


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
    other = replace(architecture, layers=shuffled, order=())
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
    for architecture in (ordered, ordered.canonical):
        assert [architecture.layers[-1][seat] for seat in architecture.reading] == ["z", "a", "m"]
    first = Architecture.parse("z + m + a > synthesize(a; order=a)")
    assert [first.layers[-1][seat] for seat in first.reading] == ["a", "z", "m"]


def test_an_order_also_groups_the_samples_of_an_agent() -> None:
    apart = Architecture.parse("a + c + a > synthesize(b; order=a)")
    assert apart.reading == (0, 2, 1)
    assert str(apart) == "a + c + a > synthesize(b; order=a)"
    # With the samples beside each other it changes nothing.
    assert Architecture.parse("a + a + c > synthesize(b; order=a)").order == ()


def test_a_name_may_end_in_what_parts_the_options() -> None:
    layer = ("b;", "c", "m;")
    given = Architecture((layer,), "c", "vote", order=("m;", "b;"), lead=0.5)
    assert str(given) == "b; + c + m; > vote(c; order=m;; lead=0.5)"
    assert Architecture.parse(str(given)) == given


def test_a_weight_that_no_float_holds_is_refused() -> None:
    plain = Architecture.parse("a + b > vote(a; weights=a:2)").to_json()
    with pytest.raises(ArchitectureError, match="must be positive and finite"):
        Architecture.from_json(plain | {"weights": {"a": 10**400}})


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
        # fuse: the analyst and the writer; knockout: two orders of two pairings
        ("b + a > fuse(c)", "a + b > fuse(c)", 1, 4),
        ("b + a > fuse(c; order=b; analyst=d)", "a + b > fuse(c; order=b; analyst=d)", 1, 4),
        ("b + a > fuse(c; analyst=c)", "a + b > fuse(c)", 1, 4),
        ("b + a + c > knockout(d; order=c)", "a + b + c > knockout(d; order=c)", 1, 7),
        ("d*3 > b + a > knockout(d)", "d*3 > a + b > knockout(d)", 2, 7),
        ("a > knockout(d)", "a > knockout(d)", 1, 1),
        ("b + a + c > vote(a; agree=2)", "a + b + c > vote(a; agree=2)", 1, 3),
        ("b + a + c > select(; agree=2)", "a + b + c > select(; agree=2)", 1, 3),
        ("b + a > vote(a; lead=0.50)", "a + b > vote(a; lead=0.5)", 1, 2),
        ("b + a > vote(a; weights=b:0.8 a:1.5)", "a + b > vote(a; weights=a:1.5 b:0.8)", 1, 2),
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


@pytest.mark.parametrize(
    ("text", "written", "whole"),
    [
        # 1.5 : 0.8 : 1 is 15 : 8 : 10
        ("vote(; weights=a:1.5 b:0.8)", "vote(; weights=a:1.5 b:0.8)", [15, 8, 10]),
        ("vote(; weights=b:0.8 a:1.5 c:1)", "vote(; weights=a:1.5 b:0.8)", [15, 8, 10]),
        ("vote(; weights=a:0.1 b:0.2 c:0.3)", "vote(; weights=a:0.1 b:0.2 c:0.3)", [1, 2, 3]),
        ("vote(; weights=a:1.23456)", "vote(; weights=a:1.235)", [247, 200, 200]),
        ("vote(; weights=a:12345678)", "vote(; weights=a:12350000)", [12350000, 1, 1]),
        ("vote(; weights=a:2 b:2)", "vote(; weights=a:2 b:2)", [2, 2, 1]),
        # The same for all: the plain vote.
        ("vote(; weights=a:2 b:2 c:2)", "vote", [1, 1, 1]),
        ("vote(; weights=a:1 b:1)", "vote", [1, 1, 1]),
        ("vote(; weights=a:1.00001)", "vote", [1, 1, 1]),
    ],
)
def test_weights_have_one_form_and_whole_numbers_in_their_ratio(
    text: str, written: str, whole: list[int]
) -> None:
    architecture = Architecture.parse(f"a + b + c > {text}")
    assert str(architecture) == f"a + b + c > {written}"
    assert architecture == Architecture.parse(f"c + b + a > {written}")
    assert architecture.integer_weights == dict(zip("abc", whole, strict=True))


def test_samples_of_an_agent_share_its_weight_and_a_name_may_hold_a_colon() -> None:
    architecture = Architecture.parse("llama:8b*2 + b > vote(; weights=llama:8b:0.5)")
    assert architecture.weights == (("llama:8b", 0.5),)
    assert architecture.integer_weights == {"llama:8b": 1, "b": 2}
    assert Architecture.parse("a*3 > vote(; weights=a:4)") == Architecture.parse("a*3 > vote")


def test_weights_agreement_and_analyst_tell_architectures_apart() -> None:
    texts = ["vote", "vote(; agree=2)", "vote(; weights=a:2)", "vote(; weights=a:2; agree=2)"]
    texts += ["vote(; lead=0.5)", "vote(; lead=0.6)", "vote(; weights=a:2; lead=0.6)"]
    texts += ["fuse(d)", "fuse(d; analyst=e)", "knockout(d)", "knockout(e)"]
    assert len({Architecture.parse(f"a + b + c > {text}") for text in texts}) == len(texts)


def test_the_last_step_names_everyone_it_asks() -> None:
    found = {
        text: Architecture.parse(f"a + b + c > {text}").last_step_agents
        for text in ("vote", "select", "select(d)", "synthesize(d)", "fuse(d)", "knockout(d)")
    }
    assert list(found.values()) == [(), (), ("d",), ("d",), ("d", "d"), ("d",) * 4]
    assert Architecture.parse("a > fuse(d; analyst=e)").last_step_agents == ("e", "d")
    assert Architecture.parse("a > fuse(d; analyst=e)").agents == ("a", "d", "e")
    assert Architecture.single("a").last_step_agents == ("a",)


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
        ("a > synthesize", r"`aggregator` must name the last step's agent, but got None"),
        ("a > synthesize()", r"but got 'synthesize\(\)'"),
        ("a > melt(b)", r"but got 'melt\(b\)'"),
        (" > vote", r"Agent name '' must not be empty"),
        ("a + > vote", r"Agent name '' must not be empty"),
        ("a*0 > vote", r"'a\*0' must read NAME or NAME\*COUNT"),
        ("a*x > vote", r"'a\*x' must read NAME or NAME\*COUNT"),
        ("a*-1 > vote", r"'a\*-1' must read NAME or NAME\*COUNT"),
        ("a* > vote", r"'a\*' must read NAME or NAME\*COUNT"),
        ("a*9999999999999 > vote", r"'a\*9999999999999' must read NAME .* \(1 to 9999\)"),
        (f"a*{'9' * 5000} > vote", r"'a\*9{38}' must read NAME or NAME\*COUNT"),
        (
            "a + b > vote(a; order=b; order=a)",
            r"The option 'order' of the last step is given twice",
        ),
        (f"a + b > vote(a; weights=a:1{'0' * 400})", r"must be positive and finite, but got inf"),
        ("a + b > vote(c)", r"decides the ties of a vote: .* last layer \(a, b\), but got 'c'"),
        ("c > a > vote(c)", r"decides the ties of a vote: .* last layer \(a\), but got 'c'"),
        (
            "c > a > vote(a; order=c)",
            r"`order` must list agents of the last layer \(a\), each at most once",
        ),
        ("a + b > vote(a; order=b b)", r"each at most once, but got b, b"),
        ("a > vote(a; prompt=p)", r"`prompt` can only be set for an aggregator that synthesizes"),
        ("a > synthesize(a; prompt=p q)", r"Prompt name 'p q' must not be empty"),
        ("a > synthesize(a; prompt=)", r"Prompt name '' must not be empty"),
        ("a > fuse", r"`aggregator` must name the last step's agent, but got None"),
        ("a > knockout", r"`aggregator` must name the last step's agent, but got None"),
        ("a > fuse(b; prompt=p)", r"`prompt` can only be set for an aggregator that synthesizes"),
        ("a > knockout(b; analyst=c)", r"`analyst` can only be set with `combine` fuse"),
        ("a + b > select(; weights=a:2)", r"`weights` can only be set with `combine` vote"),
        (
            "c > a + b > vote(; weights=c:2)",
            r"`weights` must list agents of the last layer \(a, b\),",
        ),
        ("a + b > vote(; weights=a:2 a:3)", r"each at most once, but got a, a"),
        ("a + b > vote(; weights=a:0)", r"weight of 'a' must be positive and finite, but got 0\.0"),
        ("a + b > vote(; weights=a:-1)", r"must be positive and finite, but got -1\.0"),
        ("a + b > vote(; weights=a:inf)", r"must be positive and finite, but got inf"),
        ("a + b > vote(; weights=a:nan)", r"must be positive and finite, but got nan"),
        ("a + b > vote(; weights=a:1.8e308)", r"must be positive and finite, but got inf"),
        ("a + b > vote(; weights=a:x)", r"`weights`: 'a:x' must read NAME:NUMBER"),
        ("a + b > vote(; weights=a)", r"`weights`: 'a' must read NAME:NUMBER"),
        ("a + b + c > vote(; agree=1)", r"`agree` must be at least 2 and below .* 3, but got 1"),
        ("a + b + c > vote(; agree=3)", r"`agree` must be at least 2 and below .* 3, but got 3"),
        ("a + b > vote(; agree=2)", r"below the number of members of the last layer, 2, but got 2"),
        ("a + b + c > vote(; lead=0)", r"`lead` must be a number between 0 and 1, but got 0"),
        ("a + b + c > vote(; lead=1.0)", r"`lead` must be a number between 0 and 1, but got 1\.0"),
        ("a + b + c > vote(; lead=nan)", r"`lead` must be a number between 0 and 1, but got nan"),
        ("a + b + c > vote(; lead=far)", r"`lead` must be a number between 0 and 1, but got 'far'"),
        (
            "a + b + c > vote(; agree=2; lead=0.5)",
            r"`lead` can only be set for a vote without `agree`",
        ),
        ("a + b + c > select(; lead=0.5)", r"`lead` can only be set for a vote without `agree`"),
        ("a + b + c > vote(; agree=two)", r"`agree` must be a whole number, but got 'two'"),
        ("a + b + c > select(a; agree=2)", r"`agree` needs a vote, or a select without an"),
        ("a + b + c > fuse(a; agree=2)", r"`agree` needs a vote, or a select without an"),
        (
            "a > synthesize(a; pormpt=p)",
            r"Unknown option 'pormpt' of the last step; known ones are order=NAME NAME",
        ),
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
    with pytest.raises(ArchitectureError, match="`combine` vote needs a layer of proposers"):
        Architecture((), "a", "vote")
    with pytest.raises(
        ArchitectureError, match="`aggregator` must name the last step's agent, but got None"
    ):
        Architecture((), None)


VOTE = {"layers": [["a", "b", "c"]], "aggregator": None, "combine": "vote"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must have the keys layers, aggregator and combine, .* but got"),
        ({"layers": [], "aggregator": "a"}, "must have the keys layers, aggregator and combine"),
        ({"layers": [], "aggregator": "a", "combine": "synthesize", "x": 1}, "must have the keys"),
        ({"layers": ["ab"], "aggregator": "a", "combine": "vote"}, "must be lists of names"),
        ({"layers": 3, "aggregator": "a", "combine": "vote"}, "must be lists of names"),
        ({"layers": [[1]], "aggregator": None, "combine": "vote"}, "must be lists of names"),
        ({"layers": [["a"]], "aggregator": 1, "combine": "select"}, "`aggregator` a name"),
        ({"layers": [["a"]], "aggregator": None, "combine": []}, "Unknown combine"),
        ({**VOTE, "weights": [["a", 2]]}, "`weights` must be numbers by name"),
        ({**VOTE, "weights": {"a": "2"}}, "`weights` must be numbers by name"),
        ({**VOTE, "weights": {"a": True}}, "`weights` must be numbers by name"),
        ({**VOTE, "agree": 2.0}, "`agree` must be a whole number"),
        ({**VOTE, "agree": True}, "`agree` must be a whole number"),
        ({**VOTE, "lead": True}, "`lead` must be a number between 0 and 1"),
        ({**VOTE, "lead": "0.5"}, "`lead` must be a number between 0 and 1"),
        ({**VOTE, "analyst": 1}, "`aggregator` a name"),
    ],
)
def test_json_that_is_no_architecture_is_refused(value: object, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        Architecture.from_json(value)
