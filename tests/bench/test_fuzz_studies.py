from __future__ import annotations

import pytest

from tests.bench.fuzz_studies import BAD, fuzz


@pytest.mark.slow
def test_no_mutation_of_a_study_or_pool_file_ends_in_a_traceback() -> None:
    found = fuzz(50, 25, seed=3, whole=0.0, verbose=True)
    assert {name: found[name] for name in BAD} == dict.fromkeys(BAD, 0)
    assert (found["studies"], found["pools"]) == (50, 25)
    assert found["refused"] > 20
    assert found["accepted"] > 0
