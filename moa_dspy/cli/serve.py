"""The commands ``serve``, an HTTP server over mixtures, and ``chat``, a conversation with one."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from moa_dspy.errors import ArchitectureError, MoaError, PoolError
from moa_dspy.vendors import is_loopback

if TYPE_CHECKING:
    from rich.console import Console

    from moa_dspy.mixture import MixtureOfAgents
    from moa_dspy.pool import Pool
    from moa_dspy.serve.chat import ChatAnswer, ChatMixture
    from moa_dspy.serve.limits import ServerLimits

POOLS: Final = Path("optimize/pools")
_INSTALL: Final = "pip install 'moa-dspy[serve]'"


PoolOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help=f"A pool or a study (TOML), or the name of a file in {POOLS}; default: local.",
    ),
]
"""The option ``--pool`` of every command that asks agents; see ``agents_file``."""


def agents_file(pool: str | None, *programs: Path | str) -> Path:
    """Return the file of the agents: that of ``--pool``, else the pool ``local``.

    A program never selects agents or keys by itself: the pool file of its run is only mentioned.

    Args:
        pool: Value of ``--pool``.
        programs: Files of programs or texts of architectures, which belong to no run.

    Raises:
        ArchitectureError: If a program is missing.
        PoolError: If there is no such file, or a program's run used another pool or a table of
            answers.
    """
    if pool is not None:
        return _pool_file(pool)
    local = POOLS / "local.toml"
    for program in programs:
        file = agents_of_run(Path(program))
        if names := _recorded_agents(Path(program)):
            raise PoolError(
                f"{program} was made from a table of answers, which has no agents to call: "
                f"`--pool` must name a file with agents called {', '.join(names)}."
            )
        if file is not None and not _is_local(file):
            is_gone = "" if file.is_file() else ", which no longer exists"
            raise PoolError(
                "`--pool` must name the file of the agents, because a program does not choose "
                f"which models are called; its run had --pool {_shown(file)}{is_gone}."
            )
    if not local.is_file():
        raise PoolError("`--pool` must name a TOML file with agents, of a pool or of a study.")
    return local


def _shown(file: Path) -> str:
    """Return a path as a user would type it in the present folder."""
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def _is_local(file: Path) -> bool:
    return file == (POOLS / "local.toml").resolve()


def pool_option(file: Path) -> str:
    """Return the option that names a run's file of agents; empty for the pool ``local``."""
    return "" if _is_local(file) else f" --pool {shlex.quote(_shown(file))}"


def program_file(program: Path) -> Path:
    """Return the file of a program, also for the folder of a run."""
    inside = program / "program.json"
    return inside if inside.is_file() else program


def agents_of_run(program: Path) -> Path | None:
    """Return the pool file of the run to which a program belongs; None if it is unknown."""
    program = program_file(program)
    if not program.is_file():
        if program.suffix == ".json":
            raise ArchitectureError(f"{program} cannot be read: there is no such file.")
        return None
    folder = program.resolve().parent
    try:
        named = json.loads((folder / "answers.json").read_bytes())["agents_file"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Path(os.path.normpath(folder / named)) if isinstance(named, str) and named else None


def _recorded_agents(program: Path) -> list[str]:
    """Return the names of a program's agents whose answers are those of a table."""
    try:
        agents = json.loads(program_file(program).read_bytes())["agents"]
        return [name for name, a in agents.items() if a["model"] == f"recorded/{name}"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def _pool_file(name: str) -> Path:
    """Return the file of a pool that is given by name or path.

    Raises:
        PoolError: If there is no pool of that name.
    """
    if name.endswith(".toml") or "/" in name or os.sep in name:
        return Path(name)
    path = POOLS / f"{name}.toml"
    if not path.is_file():
        choices = ", ".join(sorted(file.stem for file in POOLS.glob("*.toml"))) or "none"
        raise PoolError(
            f"Unknown pool {name!r}; {POOLS} has {choices}. A path to a TOML file also works."
        )
    return path


def program_or_text(program: str, pool: Pool) -> MixtureOfAgents:
    """Return a saved program, that of a run, or a mixture of an architecture in plain chat.

    Raises:
        ArchitectureError: If the file or the text cannot be read.
        PoolError: If the pool lacks an agent.
    """
    from moa_dspy.adapters import PlainChat
    from moa_dspy.mixture import MixtureOfAgents

    path = program_file(Path(program))
    if path.suffix == ".json" or path.is_file():
        loaded: MixtureOfAgents = MixtureOfAgents.load(path, pool=pool)
        return loaded
    if program not in pool and not re.search("[>+*(]", program):
        raise ArchitectureError(
            f"{program!r} is no saved program, no folder of a finished run, and no agent of the "
            f"pool, which has {', '.join(pool)}."
        )
    return MixtureOfAgents("question -> answer", program, pool=pool, adapter=PlainChat())


def serve(
    programs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PROGRAM...", help="Saved programs, or folders of runs."),
    ] = None,
    pool: PoolOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    key_env: Annotated[
        list[str] | None,
        typer.Option(metavar="VARIABLE", help="An environment variable that holds a bearer key."),
    ] = None,
    aggregator: Annotated[
        str | None, typer.Option(help="An agent; adds the models moa, moa-lite and self-moa.")
    ] = None,
    concurrent: Annotated[
        int, typer.Option(min=1, help="Requests answered at the same time.")
    ] = 64,
    queued: Annotated[int, typer.Option(min=0, help="Requests that may wait.")] = 1000,
    deadline: Annotated[float, typer.Option(help="Most seconds for an answer.")] = 300.0,
    usd_per_key: Annotated[float | None, typer.Option(help="Most usd a day for each key.")] = None,
    usd_per_day: Annotated[float | None, typer.Option(help="Most usd a day for all keys.")] = None,
    calls_per_key: Annotated[
        int | None, typer.Option(help="Most calls of agents a day for each key.")
    ] = None,
    log_content: Annotated[bool, typer.Option("--log-content", help="Log prompts too.")] = False,
) -> None:
    """Serve mixtures to OpenAI's clients: each program, agent and architecture is a model."""
    _check_installed()
    from moa_dspy.serve.limits import ServerKeys, ServerLimits

    keys = ServerKeys.from_environment(key_env or [])
    if not keys.are_needed and not is_loopback(host):
        raise PoolError(
            "`--key-env` must name a key if other machines can reach the server (--host "
            f"{host}); without a key it listens on 127.0.0.1 only."
        )
    limits = ServerLimits(
        concurrent=concurrent,
        queued=queued,
        deadline_seconds=deadline,
        usd_per_key_per_day=usd_per_key,
        usd_per_day=usd_per_day,
        calls_per_key_per_day=calls_per_key,
    )
    agents = agents_file(pool, *(programs or []))
    _run(programs or [], agents, host, port, keys, aggregator, limits, log_content)


def _check_installed() -> None:
    try:
        import fastapi as fastapi
        import prometheus_client as prometheus_client
        import uvicorn as uvicorn
    except ImportError as error:
        raise PoolError(
            f"`serve` needs {error.name}, which is not installed: {_INSTALL}."
        ) from None


def _run(
    paths: list[Path],
    agents: Path,
    host: str,
    port: int,
    keys: Any,
    aggregator: str | None,
    limits: ServerLimits,
    has_content_log: bool,
) -> None:
    """Serve saved programs and the agents of a pool file until the process is stopped."""
    import uvicorn

    from moa_dspy.calls.calls import Calls
    from moa_dspy.calls.lm.lm import each_warning_once
    from moa_dspy.pool import Pool
    from moa_dspy.serve.answering import Catalogue
    from moa_dspy.serve.app import create_app
    from moa_dspy.serve.limits import BoundedCalls

    pool = Pool.read(agents, calls=Calls(BoundedCalls()))
    catalogue = Catalogue(_by_name(paths, pool), pool, aggregator=aggregator, limits=limits)
    app = create_app(catalogue, keys=keys, limits=limits, has_content_log=has_content_log)
    _log_to_console()
    typer.echo(f"models: {', '.join(catalogue.models)}", err=True)
    with each_warning_once():
        uvicorn.Server(_config(app, host, port, limits)).run()


def _config(app: Any, host: str, port: int, limits: ServerLimits) -> Any:
    """Return uvicorn's configuration, without its logs, which would show addresses."""
    import uvicorn

    return uvicorn.Config(
        app,
        host,
        port,
        access_log=False,
        server_header=False,
        log_config=None,
        timeout_graceful_shutdown=30,
        h11_max_incomplete_event_size=32_768,
        limit_concurrency=limits.concurrent + limits.queued + 100,
    )


class _ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _log_to_console() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_ConsoleFormatter("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in ("httpx", "LiteLLM", "dspy"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _is_text(path: Path, file: Path) -> bool:
    """Return whether the text of an architecture was given instead of a program."""
    return ">" in str(path) and not file.exists()


def _by_name(paths: list[Path], pool: Any) -> dict[str, MixtureOfAgents]:
    from moa_dspy.mixture import MixtureOfAgents

    files = [program_file(path) for path in paths]
    if texts := [path for path, file in zip(paths, files, strict=True) if _is_text(path, file)]:
        raise ArchitectureError(
            f"PROGRAM must be a saved program or a run's folder, but got {str(texts[0])!r}. An "
            "architecture is served without it: clients write its text as their `model`."
        )
    # A run has its folder's name, so that several runs can be served.
    names = [
        path.stem if file is path else path.resolve().name
        for path, file in zip(paths, files, strict=True)
    ]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PoolError(
            f"A program is served under the name of its file, but {', '.join(twice)} occurs "
            "twice. Give folders of runs instead: these are served under the names of the "
            "folders."
        )
    loaded = (MixtureOfAgents.load(file, pool=pool) for file in files)
    return dict(zip(names, loaded, strict=True))


def chat(
    program: Annotated[
        str,
        typer.Argument(
            metavar="PROGRAM", help="A saved program, a run's folder, or an architecture's text."
        ),
    ],
    pool: PoolOption = None,
    system: Annotated[str, typer.Option(help="Instructions before the conversation.")] = "",
) -> None:
    """Talk to a mixture; /agents shows each response, /clear begins anew, /exit ends."""
    from rich.console import Console

    from moa_dspy.calls.lm.lm import each_warning_once
    from moa_dspy.pool import Pool
    from moa_dspy.serve.chat import ChatMixture

    mixture = ChatMixture(program_or_text(program, Pool.read(agents_file(pool, program))))
    with each_warning_once():
        Conversation(mixture, Console(highlight=False), system=system).run()


_COMMANDS: Final = "/agents, /clear, /exit"
_NOT_SHOWN: Final = dict.fromkeys(
    n
    for n in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if n not in (9, 10)
)


def printable(text: str) -> str:
    """Return a model's text without what would move the cursor or change the order of the text.

    These are control characters except tab and line feed, and the overrides and isolates of
    bidirectional text.
    """
    return text.translate(_NOT_SHOWN)


class Conversation:
    """A conversation in a terminal.

    Args:
        mixture: The mixture that answers.
        console: The console for output.
        system: Instructions before the conversation.
    """

    def __init__(self, mixture: ChatMixture, console: Console, *, system: str = "") -> None:
        self._mixture, self._console, self._system = mixture, console, system
        self._messages: list[Any] = []
        self._latest: ChatAnswer | None = None
        self._usd: float | None = 0.0

    def run(self) -> None:
        """Read messages, answer and show until the input ends."""
        self._console.print(f"{self._mixture.architecture}  ({_COMMANDS})", markup=False)
        with asyncio.Runner() as runner:  # one loop, so that agents' connections are kept
            while (text := self._read()) is not None:
                if text in ("/exit", "/quit"):
                    return
                if text.startswith("/"):
                    self._command(text)
                elif text.strip():
                    self._turn(runner, text)

    def _read(self) -> str | None:
        try:
            return self._console.input("[bold]> [/bold]").strip()
        except (EOFError, KeyboardInterrupt):
            return None

    def _command(self, text: str) -> None:
        if text == "/clear":
            self._messages, self._latest = [], None
        elif text != "/agents":
            self._console.print(f"Unknown {text}; known are {_COMMANDS}.", markup=False)
        elif self._latest is None:
            self._console.print("No agent has answered yet.")
        else:
            self._show_agents(self._latest)

    def _show_agents(self, answer: ChatAnswer) -> None:
        for seat, response in answer.answer.seats or (("alone", answer.answer.final),):
            tokens = response.prompt_tokens + response.completion_tokens
            head = f"{seat}: {response.agent}  ({tokens} tokens, {response.seconds:.2f} s)"
            self._console.print(head, style="bold", markup=False)
            text = response.text if response.has_answer else f"failed: {response.failure}"
            self._console.print(printable(text), markup=False)

    def _turn(self, runner: asyncio.Runner, text: str) -> None:
        from moa_dspy.dspy_internals import lm15

        message = lm15.Message.user(text)
        try:
            answer = runner.run(self._answer([*self._messages, message]))
        except KeyboardInterrupt:
            self._console.print("\n(stopped)")
            return
        except MoaError as error:
            self._console.print(f"error: {printable(str(error))}", markup=False)
            return
        self._latest = answer
        self._messages += [message, answer.reply.message]
        total = None if self._usd is None or answer.usd is None else self._usd + answer.usd
        self._usd = total
        spent = "total price unknown" if total is None else f"{total:.6f} usd in all"
        cost = answer.answer.summary if answer.answer.responses else answer.answer.final.cost
        self._console.print(f"({cost}; {spent})", style="dim", markup=False)

    async def _answer(self, messages: list[Any]) -> ChatAnswer:
        from dspy.streaming.messages import StatusMessage

        from moa_dspy.dspy_internals import lm15

        request = lm15.Request(model="chat", messages=tuple(messages), system=self._system or None)
        answer: ChatAnswer | None = None
        has_text = False
        with self._console.status("thinking") as status:
            async for event in self._mixture.astream(request):
                if isinstance(event, StatusMessage):
                    status.update(f"thinking: {event.message}")
                elif isinstance(event, lm15.StreamDeltaEvent):
                    status.stop()
                    has_text = self._show(event.delta) or has_text
                elif hasattr(event, "answer"):
                    answer = event
        if answer is None:
            raise MoaError("The stream ended without an answer.")
        # A reply that only calls tools has no text of its own, but a text that names the calls.
        rest = "" if has_text else answer.answer.final.text
        self._console.print(printable(rest), markup=False)
        return answer

    def _show(self, delta: Any) -> bool:
        """Show a piece of an answer; return whether it has text."""
        if delta.type != "text":
            return False
        text = printable(delta.text)
        self._console.print(text, end="", markup=False, soft_wrap=True)
        sys.stdout.flush()
        return bool(text.strip())
