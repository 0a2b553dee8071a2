"""From a table of one's own to a program in production: `python own_data.py tickets.csv`."""

import sys
from pathlib import Path

import dspy

from moa_dspy import MixtureOfAgents, ModelSearch, Pool
from moa_dspy.data import read_rows, split_rows

# Each [[agents]] has a name, a model, an api_base and the name of the variable with its key.
pool = Pool.read("pool.toml")


class Triage(dspy.Signature):
    """Name the team that a ticket is for: billing, shipping, returns or other."""

    ticket: str = dspy.InputField()
    team: str = dspy.OutputField()


def same_team(row: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    """Score an answer; any function of a row and a prediction will do."""
    return str(prediction.team).strip().lower() == str(row.team).lower()


rows = read_rows(Path(sys.argv[1]), inputs=["ticket"])
splits = split_rows(rows, sizes={"val": len(rows) // 2, "test": len(rows) - len(rows) // 2})
search = ModelSearch(same_team, pool, n_trials=12, budget=5.0)  # usd, never exceeded
program = search.compile(dspy.Predict(Triage), trainset=[], valset=splits.val, testset=splits.test)
print(search.result)
program.save("triage.json")

# In production: architecture and prompts come from the file, endpoints and keys from the pool.
triage = MixtureOfAgents.load("triage.json", pool=pool, signature=Triage)
print(triage(ticket="I was charged twice for order 1017.").team)
