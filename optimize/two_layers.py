"""The paper's two-layer shape with live local models: ten questions, every message shown.

    python optimize/two_layers.py > docs/results/two_layers.json

Needs the weights that `optimize/pools/local.toml` names. A second run answers from the store.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from moa_dspy import Pool, moa_lite
from moa_dspy.agent import read_agents
from moa_dspy.calls import Calls, CallStore

ROOT = Path(__file__).parent.parent
PROPOSERS = ["smollm2-135m-warm", "qwen-0.5b-warm", "qwen-1.5b-warm"]
AGGREGATOR = "qwen-1.5b"
QUESTIONS = [
    "Why do leaves change colour in autumn?",
    "How do I keep bread fresh for longer?",
    "Explain to a ten-year-old what inflation is.",
    "What is the difference between weather and climate?",
    "Give three tips for a first job interview.",
    "Why is the sea salty?",
    "Write a two-line poem about a lighthouse.",
    "What does a compiler do?",
    "How does a vaccine protect someone?",
    "Name two advantages and one disadvantage of trains over planes.",
]


def shown(program: Any, question: str) -> dict[str, Any]:
    """Answer one question and return every message that was sent and every response."""
    prediction = program(question=question)
    requests = []
    for seat, response in prediction.mixture.seats:
        sent = program.pool.lm(response.agent).history[-1]["messages"]
        facts = {"seconds": round(response.seconds, 2), "tokens": response.completion_tokens}
        requests.append({"seat": seat, "agent": response.agent, "messages": sent, **facts})
        requests[-1] |= {"response": response.text, "failure": response.failure}
    return {"question": question, "answer": prediction.answer, "calls": requests}


if __name__ == "__main__":
    agents = [
        replace(agent, max_tokens=160)
        for agent in read_agents(ROOT / "optimize/pools/local.toml")
        if agent.name in {*PROPOSERS, AGGREGATOR}
    ]
    calls = Calls(CallStore(ROOT / "runs/two_layers/calls.sqlite"))
    program = moa_lite(pool=Pool(agents, calls=calls), proposers=PROPOSERS, aggregator=AGGREGATOR)
    answers = [shown(program, question) for question in QUESTIONS]
    models = {agent.name: [agent.model, agent.temperature, agent.sha256] for agent in agents}
    result = {"architecture": str(program.architecture), "models": models, "answers": answers}
    print(json.dumps(result, indent=1, ensure_ascii=False))
