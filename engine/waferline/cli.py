"""The command line. Each command is one function; what it needs is imported when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from .argument_types import integer, json_object, size, tenant_weight
from .bench.command import add_bench
from .runtime.errors import RequestFailed
from .sampling_options import add_sampling_options, sampling_params
from .serving.address import DEFAULT_ADDRESS, check_bind_address

INTERRUPTED = 130  # what a shell reports of a command that SIGINT ended
BROKEN_PIPE = 141
MAX_WAITING_REQUESTS = 2048  # of a server: half of the requests that it has in flight at most, twice a client's batch


def main(argv: list[str] | None = None) -> int:
    """Run the command that ``argv`` names; the exit status: 1 after an error, 2 for wrong usage."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except UsageError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has gone; nothing more must be flushed into it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (RequestFailed, OSError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        out_of_memory = isinstance(error, MemoryError) and not str(error)  # Python's own says nothing
        print(f"waferline: {'out of memory' if out_of_memory else error}", file=sys.stderr)
        return 1


class ShowVersion(argparse.Action):
    """As argparse's own, but that asks for the version only when it is to be shown."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        import waferline

        print(f"waferline {waferline.__version__}")
        parser.exit()


class UsageError(Exception):
    """Arguments that do not go together, or are out of range."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="waferline", description="A low-latency streaming token-generation engine.")
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="show it, and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="serve the embedded model, stream a story from it, and show the timings")
    demo.add_argument("--prompt", default="Once upon a time")
    demo.add_argument("--model", default="demo", help="another model than the embedded one")
    add_sampling_options(demo, without=("n",), temperature=0.7, seed=7, max_tokens=256)
    demo.set_defaults(run=run_demo)

    serve = commands.add_parser("serve", help="serve a model over ZeroMQ until told to stop")
    _add_model_arguments(serve)
    serve.add_argument(
        "--bind", default=DEFAULT_ADDRESS, metavar="ADDRESS", help="port * for any free one; %(default)s"
    )
    serve.add_argument("--allow-remote", action="store_true", help="allow to bind where other machines can connect")
    serve.add_argument("--max-model-len", type=integer, metavar="TOKENS", help="of a completion and its prompt")
    serve.add_argument("--max-num-seqs", type=integer, metavar="N", help="completions that run at once")
    serve.add_argument("--max-num-batched-tokens", type=integer, metavar="TOKENS", help="of one step")
    serve.add_argument("--kv-cache-memory", type=size, metavar="SIZE", help="such as 512MiB or 2GiB")
    serve.add_argument("--kv-dtype", metavar="DTYPE", help="of the KV cache: f32, bf16, int8 or auto; default: auto")
    serve.add_argument(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        help="begin prompts with what the KV cache has of them; on unless turned off",
    )
    serve.add_argument(
        "--itl-target-ms",
        type=float,
        metavar="MS",
        help="between two tokens of a stream, which the prompts of others are not to lengthen beyond it",
    )
    serve.add_argument(
        "--max-waiting-requests",
        type=integer,
        default=MAX_WAITING_REQUESTS,
        metavar="N",
        help="completions that may wait; more are answered at once that there is too much to do; %(default)s",
    )
    serve.add_argument(
        "--max-waiting-tokens", type=integer, metavar="TOKENS", help="the same for their prompts' tokens"
    )
    serve.add_argument("--max-ttft-ms", type=float, metavar="MS", help="the same for the predicted time to first token")
    serve.add_argument(
        "--tenant-weight",
        type=tenant_weight,
        action="append",
        dest="tenant_weights",
        metavar="NAME=WEIGHT",
        help="share of a tenant, where others have 1; may be given several times",
    )
    serve.add_argument(
        "--speculative-config",
        type=json_object,
        metavar="JSON",
        help="""such as '{"method": "ngram", "num_speculative_tokens": 4}': draft tokens, verify several in one step""",
    )
    serve.add_argument(
        "--drain-timeout", type=float, default=30.0, metavar="SECONDS", help="after SIGTERM; %(default)s"
    )
    serve.add_argument("--die-with-parent", action="store_true", help=argparse.SUPPRESS)
    serve.set_defaults(run=run_serve)

    generate = commands.add_parser("generate", help="complete prompts, by a server")
    generate.add_argument("prompts", nargs="+", metavar="PROMPT")
    _add_client_arguments(generate)
    generate.set_defaults(run=run_generate)

    stream = commands.add_parser("stream", help="complete a prompt, by a server, token by token; Ctrl-C cancels")
    stream.add_argument("prompt", metavar="PROMPT")
    _add_client_arguments(stream, without=("n",))
    stream.set_defaults(run=run_stream)

    pack = commands.add_parser("pack", help="write a model as one file that loads without conversion")
    pack.add_argument("model", metavar="MODEL", help='a Hugging Face folder, or "demo"')
    pack.add_argument("out", metavar="OUT")
    pack.add_argument("--dtype", help="q4, q8, bf16 or f32; default: q8")
    pack.add_argument(
        "--calibrate",
        action="store_true",
        help="with q4: round weights for the activations of text that the model writes itself; takes longer",
    )
    pack.set_defaults(run=run_pack)

    inspect = commands.add_parser("inspect", help="show a model's program, and where its weights lie")
    _add_model_arguments(inspect)
    inspect.add_argument("--fabric", default="host", help="host (measured), or wse3 (predicted); %(default)s")
    inspect.set_defaults(run=run_inspect)

    add_bench(commands)
    return parser


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help='a Hugging Face folder, a packed file, or "demo"')
    parser.add_argument("--dtype", help="of the weights: q4, q8, bf16 or f32; default: q8, or what a packed file has")
    parser.add_argument("--threads", type=integer, metavar="N", help="default: as many as the model has work for")


def _add_client_arguments(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    parser.add_argument("--connect", default=DEFAULT_ADDRESS, metavar="ADDRESS", help="%(default)s")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="of silence; %(default)s")
    add_sampling_options(parser, without)


def _sampling_params(args: argparse.Namespace) -> Any:
    try:
        return sampling_params(args)
    except ValueError as error:
        raise UsageError(str(error)) from None


def run_demo(args: argparse.Namespace) -> int:
    from .demo_command import run

    run(args.model, args.prompt, _sampling_params(args))
    return 0


def run_serve(args: argparse.Namespace) -> int:
    from .serving.engine_link import EngineConfig
    from .serving.engine_process import LIMITS, die_with_parent
    from .serving.server import Server

    def print_ready(stats: dict[str, Any]) -> None:
        threads = f"{stats['threads']} thread{'s' if stats['threads'] > 1 else ''}"
        where = f"{stats['backend']}/{stats['level']}, {threads}"
        print(f"waferline: serving {stats['model']} ({stats['dtype']}) on {where} at {server.address}", flush=True)

    try:
        check_bind_address(args.bind, args.allow_remote)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if args.die_with_parent:
        die_with_parent()
    args.tenant_weights = dict(args.tenant_weights or ())
    limits = {name: getattr(args, name) for name in LIMITS}
    config = EngineConfig(model=args.model, dtype=args.dtype, **limits)
    server = Server(args.bind, config, drain_timeout=args.drain_timeout, on_ready=print_ready)
    server.install_signal_handlers()
    server.run()
    return 0


def run_generate(args: argparse.Namespace) -> int:
    from .serving.client import Client

    params = _sampling_params(args)
    with Client(args.connect, timeout=args.timeout) as client:
        for output in client.generate(args.prompts, params):
            for completion in output.outputs:
                print(completion.text)
    return 0


def run_stream(args: argparse.Namespace) -> int:
    from .serving.client import Client

    params = _sampling_params(args)
    with Client(args.connect, timeout=args.timeout) as client:
        stream = client.stream(args.prompt, params)
        try:
            for delta in stream:
                print(delta.text, end="", flush=True)
        finally:
            stream.close()
            print()
    return 0


def run_pack(args: argparse.Namespace) -> int:
    from .model.load import pack_model

    pack_model(args.model, args.out, args.dtype, args.calibrate)
    print(f"waferline: wrote {args.out} ({os.path.getsize(args.out) / 1e6:.1f} MB)")
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    from .inspect_command import inspect_lines
    from .model.load import load_model

    for line in inspect_lines(load_model(args.model, args.dtype), args.threads, args.fabric):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
