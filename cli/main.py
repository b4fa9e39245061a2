"""The `penstock` command: its subcommands, their options and how errors are shown.

A user's error is one clear line on stderr, never a traceback: exit code 2 for settings and arguments, 1 for what a server
answered. Each subcommand imports its part when it runs, so that `penstock --help` is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from tasks.errors import BadConfig, PenstockError

out = Console()
err = Console(stderr=True)


class _Group(TyperGroup):
    """Shows our errors as one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PenstockError as error:
            err.print(f"penstock: {error.message}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2 if isinstance(error, BadConfig) else 1) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Serve language models through a queue: every generation is a resumable job.",
    epilog="Example:  penstock up   then, elsewhere:  penstock chat",
)

Url = Annotated[
    str, typer.Option(help="Where the API is; by default that of this folder's `penstock up`, else PENSTOCK_PORT.")
]
Model = Annotated[str, typer.Option(help="The model's name; by default the first that is served.")]


@app.command(
    epilog="Examples:  penstock up   |   penstock up --model Qwen/Qwen3-0.6B   |   penstock up --port 9000 --no-flower"
)
def up(
    model: Annotated[str, typer.Option(help="Serve this folder or hub id instead of models.toml.")] = "",
    name: Annotated[str, typer.Option(help="With --model: the name that clients use.")] = "",
    engine: Annotated[str, typer.Option(help="With --model: transformers, onnx or fake.")] = "transformers",
    dtype: Annotated[str, typer.Option(help="With --model: auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="With --model: auto, cpu or cuda.")] = "auto",
    quantization: Annotated[str, typer.Option(help="With --model: none, int8 or nf4.")] = "none",
    models: Annotated[Path | None, typer.Option(help="What to serve. [PENSTOCK_MODELS, models.toml]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [PENSTOCK_HOST, 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API; 0: a free one. [PENSTOCK_PORT, 8000]")] = None,
    flower_port: Annotated[int | None, typer.Option(help="Port of Flower. [PENSTOCK_FLOWER_PORT, 5555]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Redis' files and logs. [PENSTOCK_DATA_DIR, .penstock]")] = None,
    flower: Annotated[bool, typer.Option(help="Run Flower, a live view of workers and queues.")] = True,
) -> None:
    """Run everything on this machine: Redis, workers, the API and Flower. Ctrl-C drains."""
    from cli.up import Options
    from cli.up import up as run

    if model and models:
        raise BadConfig("--model and --models exclude each other: put the model into the file instead")
    if name and not model:
        raise BadConfig("--name goes with --model; the models of models.toml have names of their own")
    named = {"models": models, "host": host, "port": port, "flower_port": flower_port, "data_dir": data_dir}
    overrides = {key: value for key, value in named.items() if value is not None}
    entry = {"engine": engine, "dtype": dtype, "device": device, "quantization": quantization}
    run(out, Options(model, name, entry, flower), **overrides)


@app.command(epilog="Examples:  penstock chat   |   echo 'Count from 3 to 40.' | penstock chat")
def chat(
    model: Model = "",
    url: Url = "",
    system: Annotated[str, typer.Option(help="A system message to begin with.")] = "",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0: always the likeliest token.")] = None,
) -> None:
    """Talk to a model in the terminal, token by token. Ctrl-C stops an answer, /exit leaves."""
    from cli.chat import chat as run
    from cli.client import Client

    with Client(url) as client:
        run(out, client, model, system, _given(max_tokens=max_tokens, temperature=temperature))


@app.command(
    epilog="Examples:  penstock submit 'Count from 3 to 40.' --wait   |   penstock submit 'Hi.' --priority batch"
)
def submit(
    prompt: Annotated[str, typer.Argument(help="The message; - reads it from stdin.")],
    model: Model = "",
    wait: Annotated[bool, typer.Option(help="Wait for the answer and print it.")] = False,
    priority: Annotated[str | None, typer.Option(help="interactive, normal or batch.")] = None,
    deadline: Annotated[float | None, typer.Option(min=0.001, help="Seconds after which it is useless.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of the answer.")] = None,
    url: Url = "",
) -> None:
    """Put a job in line. It outlives this command; `penstock jobs` shows it."""
    from cli.client import Client
    from cli.jobs import submit as run

    text = typer.get_text_stream("stdin").read() if prompt == "-" else prompt
    with Client(url) as client:
        body = {"model": client.model(model), "messages": [{"role": "user", "content": text}]}
        body |= _given(priority=priority, deadline_s=deadline, max_tokens=max_tokens)
        run(out, client, body, wait)


@app.command(epilog="Example:  penstock jobs --limit 50")
def jobs(limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20, url: Url = "") -> None:
    """List the latest submitted jobs."""
    from cli.client import Client
    from cli.jobs import show

    with Client(url) as client:
        show(out, client, limit)


@app.command(epilog="Example:  penstock cancel job_9fQ2mZ0aX4kLw7RtB1cVyN3s")
def cancel(job: Annotated[str, typer.Argument(help="The job's id, of any route.")], url: Url = "") -> None:
    """Cancel a job, waiting or running."""
    from cli.client import Client
    from cli.jobs import cancel as run

    with Client(url) as client:
        run(out, client, job)


@app.command(epilog="Example:  penstock status --watch")
def status(watch: Annotated[bool, typer.Option(help="Again every second.")] = False, url: Url = "") -> None:
    """Show each model's line, lanes and tokens per second, and the workers."""
    from cli.client import Client
    from cli.status import status as run

    with Client(url) as client:
        run(out, client, watch)


@app.command(epilog="Example:  penstock workers")
def workers(url: Url = "") -> None:
    """List the workers with their model, GPUs, lanes and last heartbeat."""
    from cli.client import Client
    from cli.status import workers as run

    with Client(url) as client:
        run(out, client)


bench = typer.Typer(no_args_is_help=True, help="Measure parts of the line by themselves.")
app.add_typer(bench, name="bench")


@bench.callback()
def _bench() -> None:
    """Keeps `engine` a command of its own while it is the only one."""


@bench.command(
    "engine", epilog="Example:  penstock bench engine models/demo --streams 1 --streams 8 --streams 64 --prompt 128"
)
def bench_engine(
    path: Annotated[str, typer.Argument(help="The model: a folder or a hub id.")],
    engine: Annotated[str, typer.Option(help="transformers, onnx or fake.")] = "transformers",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    quantization: Annotated[str, typer.Option(help="none, int8 or nf4.")] = "none",
    streams: Annotated[list[int], typer.Option(min=1, help="Requests at once; may be repeated.")] = [1, 8, 32],  # noqa: B006
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt, drawn at random.")] = 32,
    new: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each, after one to warm up.")] = 3,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
) -> None:
    """Tokens per second, time to first token, step time and KV use of an engine alone, without queue and HTTP."""
    from cli.bench import Load
    from cli.bench import bench as run
    from workers.engine.registry import EngineSpec

    spec = EngineSpec(
        path=path,
        dtype=dtype,
        device=device,
        max_num_seqs=max(streams),
        max_model_len=prompt + new,
        progress=lambda line: err.print(line, style="dim"),
        quantization=quantization,
    )
    run(out, engine, spec, streams, Load(prompt, new, rounds, temperature, seed))


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
