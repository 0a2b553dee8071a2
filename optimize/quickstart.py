"""The quickstart as Python: votes among five recorded models, and an honest verdict."""

from pathlib import Path

import dspy

from moa_dspy import MixtureOfAgents, ModelSearch, Pool
from moa_dspy.adapters import PlainChat
from moa_dspy.calls import Calls, Recording
from moa_dspy.data import answer_match, read_rows, split_rows
from moa_dspy.optimize import SearchSpace

ROOT = Path(__file__).parent.parent
calls = Calls(recording=Recording.read(ROOT / "data/quickstart/calls.parquet"), replay_only=True)
pool = Pool.read(ROOT / "optimize/pools/quickstart.toml", calls=calls)
rows = read_rows(ROOT / "data/quickstart/tasks.jsonl", inputs=["question"])
splits = split_rows(rows, column="split")

task = "Answer the question. Reply with the answer only, in one word or number."
signature = dspy.make_signature("question -> answer", task)
plain = PlainChat()
student = MixtureOfAgents(signature, "qwen-1.5b", pool=pool, adapter=plain, normalise="answer")
space = SearchSpace(tuple(pool), combines=("vote", "select"), max_depth=1, max_width=5)

search = ModelSearch(answer_match, pool, space=space, n_trials=40, seed=0)
program = search.compile(student, trainset=splits.train, valset=splits.val, testset=splits.test)
print(search.result.verdict.text)
print(program.architecture, "answers", program(question=splits.test[0].question).answer)
