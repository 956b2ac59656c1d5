"""The command line: what it prints, its exit statuses, and that an error is one line."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from running_server import RunningServer

from waferline import Client, SamplingParams
from waferline.cli import main, make_parser
from waferline.demo_command import percentile, summary
from waferline.sampling_options import NO_OPTIONS, sampling_params
from waferline.serving.address import check_bind_address

MODEL = Path(__file__).parents[1] / "fixtures" / "tied"


@dataclass
class Done:
    status: int
    output: str
    errors: str


Run = Callable[..., Done]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def run_command(*arguments: str) -> Done:
        try:
            status = main(list(arguments))
        except SystemExit as end:
            status = int(end.code or 0)
        return Done(status, *capfd.readouterr())

    return run_command


def test_generate(server: RunningServer, run: Run) -> None:
    done = run("generate", "echo", "slow", "--connect", server.address, "--max-tokens", "3", "--n", "2")
    assert done == Done(0, "0 1 2 \n" * 4, "")


def test_stream(server: RunningServer, run: Run) -> None:
    done = run("stream", "echo", "--connect", server.address, "--max-tokens", "3")
    assert done == Done(0, "0 1 2 \n", "")


def test_ctrl_c_cancels_a_stream(server: RunningServer) -> None:
    command = [sys.executable, "-m", "waferline.cli", "stream", "slow", "--connect", server.address]
    with subprocess.Popen(
        [*command, "--max-tokens", "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.read(4) == "0 1 "  # as they come
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (130, "")
    assert output.endswith("\n")
    with Client(server.address) as client:
        deadline = time.monotonic() + 10
        while client.stats()["num_running"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_reader_that_goes_away_ends_a_stream_quietly(server: RunningServer) -> None:
    command = [sys.executable, "-m", "waferline.cli", "stream", "slow", "--connect", server.address]
    with subprocess.Popen(
        [*command, "--max-tokens", "1000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(4)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(10) == 141


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "refuse"], "prompts[0]: prompt: too long"),
        (["generate", ""], "prompt: ''"),
        (["stream", "refuse"], "prompt_too_long"),
    ],
)
def test_a_request_that_fails_is_one_line(server: RunningServer, run: Run, arguments: list[str], words: str) -> None:
    done = run(*arguments, "--connect", server.address)
    assert (done.status, done.errors.count("\n")) == (1, 1)
    assert done.errors.startswith("waferline: ")
    assert words in done.errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stream", "x", "--connect", "tcp://127.0.0.1:9", "--timeout", "0.1"], "unavailable"),
        (["stream", "x", "--connect", "nonsense"], "address: 'nonsense'"),
        (["serve", "no-such-model", "--bind", "tcp://127.0.0.1:*"], "no-such-model"),
        (["serve", str(MODEL), "--bind", "tcp://127.0.0.1:*", "--dtype", "q9"], "dtype: 'q9'"),
        (["serve", str(MODEL), "--bind", "tcp://127.0.0.1:*", "--kv-cache-memory", "1"], "kv_cache_memory"),
        (
            ["serve", str(MODEL), "--bind", "tcp://127.0.0.1:*", "--tenant-weight", "acme=0"],
            "tenant_weights: 'acme': 0",
        ),
        (["serve", str(MODEL), "--bind", "tcp://127.0.0.1:*", "--max-ttft-ms", "0"], "max_ttft_ms: 0"),
        (
            ["serve", str(MODEL), "--bind", "tcp://127.0.0.1:*", "--speculative-config", "{}"],
            "speculative_config.method",
        ),
        (["demo", "--model", "no-such-model"], "no-such-model"),
        (["pack", "no-such-model", "out"], "no-such-model"),
        (["pack", "demo", "out", "--calibrate"], "calibrate: given with dtype 'q8', expected dtype 'q4'"),
        (["inspect", "no-such-model"], "no-such-model"),
    ],
)
def test_what_cannot_be_done_is_said_without_a_traceback(run: Run, arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.status == 1
    assert words in done.errors
    assert "Traceback" not in done.errors


def test_memory_that_is_not_there_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("waferline.model.load.pack_model", exhausted)
    assert run("pack", "demo", "out") == Done(1, "", "waferline: out of memory\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["serve"], "MODEL"),
        (["serve", "demo", "--bind", "tcp://0.0.0.0:5757"], "--allow-remote"),
        (["serve", "demo", "--bind", "5757"], "bind: '5757'"),
        (["serve", "demo", "--kv-cache-memory", "much"], "--kv-cache-memory: size: 'much', expected a number of bytes"),
        (["serve", "demo", "--kv-cache-memory", "9" * 400], "expected a number of bytes below 2**63"),
        (
            ["serve", "demo", "--max-num-seqs", "9" * 25],
            f"--max-num-seqs: '{'9' * 25}', expected an integer of 64 bits",
        ),
        (["serve", "demo", "--max-num-seqs", "many"], "--max-num-seqs: 'many', expected an integer"),
        (["serve", "demo", "--tenant-weight", "acme=heavy"], "'acme=heavy', expected NAME=WEIGHT"),
        (
            ["serve", "demo", "--speculative-config", "{ngram}"],
            "--speculative-config: '{ngram}', expected a JSON object",
        ),
        (["serve", "demo", "--tenant-weight", "5"], "--tenant-weight: '5', expected NAME=WEIGHT"),
        (["serve", "demo", "--tenant-weight", "=5"], "--tenant-weight: '=5', expected NAME=WEIGHT"),
        (["serve", "demo", "--speculative-config", "[" * 100_000], "[[[', expected a JSON object: maximum recursion"),
        (["serve", "demo", "--speculative-config", "4"], "--speculative-config: '4', expected a JSON object"),
        (["stream", "x", "--temperature", "hot"], "--temperature"),
        (["stream", "x", "--temperature", "-1"], "temperature: -1"),
        (["stream", "x", "--n", "2"], "option: --n"),
        (["demo", "--n=2"], "option: --n"),
        (["bench", "kernels", "--rows", "1,many"], "--rows: '1,many', expected numbers of at least 1"),
        (
            ["bench", "interference", "--itl-target-ms", "soon"],
            "--itl-target-ms: 'soon', expected milliseconds, or auto",
        ),
        (["bench", "speculation", "--acceptance", "1,half"], "--acceptance: '1,half', expected numbers from 0 to 1"),
        (["bench", "schedule", "--kv-cache-memory", "1.2.3"], "--kv-cache-memory: size: '1.2.3', expected"),
    ],
)
def test_wrong_usage_has_status_2(run: Run, arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.status == 2
    assert words in done.errors


def test_an_address_in_use_is_said(server: RunningServer, run: Run) -> None:
    done = run("serve", str(MODEL), "--bind", server.address)
    assert (done.status, done.errors.count("\n")) == (1, 1)
    assert "Address already in use" in done.errors


def test_every_sampling_parameter_has_an_option() -> None:
    given = SamplingParams(
        n=2,
        temperature=0.5,
        top_k=7,
        top_p=0.5,
        min_p=0.1,
        seed=3,
        max_tokens=None,
        min_tokens=4,
        stop=["a", "b"],
        stop_token_ids=[5, 6],
        ignore_eos=True,
        logprobs=1,
        prompt_logprobs=2,
        presence_penalty=0.25,
        frequency_penalty=-0.25,
        repetition_penalty=1.5,
        include_stop_str_in_output=True,
        logit_bias={7: -1.5, 8: 2.0},
        allowed_token_ids=[7, 8],
        bad_words=["a", "b c"],
        skip_special_tokens=False,
        truncate_prompt_tokens=9,
    )
    arguments = ["generate", "x"]
    for field in msgspec.structs.fields(SamplingParams):
        value = getattr(given, field.name)
        assert (value == field.default) == (field.name in NO_OPTIONS)
        if field.name in NO_OPTIONS:
            continue
        option = "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(option if value else option.replace("--", "--no-"))
            continue
        values = [f"{key}={bias}" for key, bias in value.items()] if isinstance(value, dict) else value
        arguments += [f"{option}={one}" for one in (values if isinstance(values, list) else [values])]
    parser = make_parser()
    assert sampling_params(parser.parse_args(arguments)) == given
    assert sampling_params(parser.parse_args(["generate", "x"])) == SamplingParams()
    assert sampling_params(parser.parse_args(["demo", "--top-k", "3"])).temperature == 0.7


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:5757", "tcp://127.1.2.3:*", "tcp://[::1]:5757", "tcp://localhost:0", "ipc:///tmp/x"]
)
def test_loopback_addresses_are_bound_to(address: str) -> None:
    check_bind_address(address, allow_remote=False)


@pytest.mark.parametrize(
    "address", ["tcp://*:5757", "tcp://0.0.0.0:*", "tcp://10.0.0.1:1", "tcp://[::]:1", "tcp://eth0:1"]
)
def test_other_addresses_only_where_they_are_allowed(address: str) -> None:
    with pytest.raises(ValueError, match="allow-remote"):
        check_bind_address(address, allow_remote=False)
    check_bind_address(address, allow_remote=True)


@pytest.mark.parametrize(
    "address", ["", "5757", "tcp://127.0.0.1", "tcp://127.0.0.1:65536", "udp://127.0.0.1:1", "ipc://"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_bind_address(address, allow_remote=True)


def test_pack_and_inspect(tmp_path: Path, run: Run) -> None:
    packed = tmp_path / "tied.wafer"
    done = run("pack", str(MODEL), str(packed))
    assert (done.status, done.errors) == (0, "")
    assert done.output.startswith(f"waferline: wrote {packed} (")
    done = run("inspect", str(packed), "--threads", "1")
    assert (done.status, done.errors) == (0, "")
    assert "matmul" in done.output


def test_the_summary_s_arithmetic() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 99) == 4.0
    assert percentile([1.0], 50) == 1.0
    stats = {"model": "m", "dtype": "q8", "model_bytes": 2_500_000, "backend": "native", "level": "avx2", "threads": 2}
    lines = list(summary(10.0, [10.5, 10.75, 11.0], stats | {"residency": "in L2"}))
    assert lines == [
        "tokens    3 in 1.000 s: 3 tokens/s",
        "TTFT      500 ms",
        "ITL       p50 250 ms, p99 250 ms",
        "model     m: 2.5 MB of q8 weights; native/avx2, threads: 2",
        "resident  in L2",
    ]


def test_help_is_quick() -> None:
    program = (
        "import sys; sys.argv[1:] = ['--help']; from waferline.cli import main; import atexit, time; "
        "atexit.register(lambda: print(time.process_time(), len({'numpy', 'zmq'} & set(sys.modules)))); main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, num_heavy = done.stdout.split()[-2:]
    assert float(seconds) < 0.3
    assert num_heavy == "0"
