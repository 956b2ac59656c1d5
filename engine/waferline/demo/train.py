"""Trains the embedded model from nothing: `python -m waferline.demo.train --out DIR` (extra `train`).

Four steps, each of which depends on nothing but the code and the arguments:

1. `grammar.py` writes the stories, one per seed; the validation stories have seeds of their own.
2. A byte-level BPE tokenizer is trained on the first of them.
3. A small Llama model is trained on rows of stories, each story between the begin and the end token.
4. Both are written as a Hugging Face folder, with the weights in bfloat16.

The stories and the tokenizer come out the same on every machine. The weights do so only with the same PyTorch, the same
processor and the same `--threads`, since the order of floating-point sums depends on them.
"""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional

from .grammar import write_stories
from .torch_llama import Llama, LlamaShape

BOS_TOKEN, EOS_TOKEN = "<|bos|>", "<|endoftext|>"
BOS_ID, EOS_ID = 0, 1

TOKENIZER_STORIES = 10_000
VALIDATION_STORIES = 400
FIRST_VALIDATION_SEED = 1_000_000_000

PEAK_LEARNING_RATE = 4e-3
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.1
MAX_GRADIENT_NORM = 1.0
STEPS_PER_REPORT = 50


def train_tokenizer(stories: list[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE tokenizer that puts the begin token before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS_TOKEN, EOS_TOKEN],  # in this order they get the ids 0 and 1
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(stories, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A", special_tokens=[(BOS_TOKEN, BOS_ID)]
    )
    return tokenizer


def pack_rows(stories: list[str], tokenizer: Tokenizer, row_length: int) -> Iterator[list[int]]:
    """Yields rows of `row_length` tokens that start at the beginning of a story.

    A story that does not fit into its row is cut there, and the next row starts with the next story:
    row_length 8 and the stories [0 5 6 1], [0 7 8 9 1], [0 4 1] make the rows 0 5 6 1 0 7 8 9 | 0 4 1 ...; a last row
    that is not full is dropped.
    """
    row: list[int] = []
    for encoding in tokenizer.encode_batch(stories):
        row += [*encoding.ids, EOS_ID]
        if len(row) >= row_length:
            yield row[:row_length]
            row = []


def training_rows(tokenizer: Tokenizer, num_rows: int, row_length: int) -> Tensor:
    """Returns the first `num_rows` rows of the endless sequence of training stories, as (rows, row_length)."""
    rows: list[list[int]] = []
    first_seed, stories_at_once = 0, 10_000
    while len(rows) < num_rows:
        stories = write_stories(range(first_seed, first_seed + stories_at_once))
        rows.extend(pack_rows(stories, tokenizer, row_length))
        first_seed += stories_at_once
    return torch.tensor(rows[:num_rows])


def validation_rows(tokenizer: Tokenizer, row_length: int) -> Tensor:
    """Returns rows of stories that are not trained on."""
    seeds = range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + VALIDATION_STORIES)
    return torch.tensor(list(pack_rows(write_stories(seeds), tokenizer, row_length)))


def next_token_loss(model: Llama, rows: Tensor) -> Tensor:
    """Returns the mean cross-entropy, in nats, of every token of the rows but the first: (B, T + 1) -> scalar."""
    logits = model(rows[:, :-1]).float()
    return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def learning_rate(step: int, num_steps: int) -> float:
    """Rises in a straight line to the peak, then falls along a cosine to zero."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return PEAK_LEARNING_RATE * warmup * 0.5 * (1.0 + math.cos(math.pi * step / num_steps))


def train(model: Llama, rows: Tensor, rows_per_step: int) -> float:
    """Goes over the rows once, in their order, and returns the mean loss of the last reported steps."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    num_steps = len(rows) // rows_per_step
    started = time.monotonic()
    recent_losses: list[float] = []
    mean_loss = math.nan
    for step in range(num_steps):
        batch = rows[step * rows_per_step : (step + 1) * rows_per_step]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps)
        # bfloat16 products are faster than float32 ones on processors with AVX512-BF16; the weights stay in float32.
        with torch.autocast("cpu", torch.bfloat16):
            loss = next_token_loss(model, batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()

        recent_losses.append(loss.item())
        if (step + 1) % STEPS_PER_REPORT == 0 or step + 1 == num_steps:
            mean_loss = sum(recent_losses) / len(recent_losses)
            seconds = time.monotonic() - started
            speed = (step + 1) * rows_per_step * (rows.shape[1] - 1) / seconds
            progress = f"step {step + 1}/{num_steps}  loss {mean_loss:.4f}"
            print(f"{progress}  {seconds:.0f} s  {speed:.0f} tokens/s", flush=True)
            recent_losses.clear()
    return mean_loss


@torch.no_grad()
def evaluate(model: Llama, rows: Tensor) -> float:
    """Returns the mean loss of the rows in float32."""
    losses = [next_token_loss(model, row.unsqueeze(0)).item() for row in rows]
    return sum(losses) / len(losses)


def round_to_bfloat16(model: Llama) -> None:
    """Rounds every weight in place to the bfloat16 that is written to the file."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()


def export(model: Llama, tokenizer: Tokenizer, out: Path) -> None:
    """Writes the model and its tokenizer as a Hugging Face folder."""
    out.mkdir(parents=True, exist_ok=True)
    shape = model.model.shape
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(shape),
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "torch_dtype": "bfloat16",
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS_TOKEN,
        "eos_token": EOS_TOKEN,
        "model_max_length": shape.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
    generation_config = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation_config),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    # The output projection is the embedding, so it is not written twice.
    weights = {name: weight.bfloat16().contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Trains and writes the model as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the model to")
    parser.add_argument("--steps", type=int, default=1000, help="how many optimizer steps")
    parser.add_argument("--rows-per-step", type=int, default=4, help="rows of 512 tokens in each step")
    parser.add_argument("--threads", type=int, default=2, help="processor threads for PyTorch")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first weights")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    shape = LlamaShape()
    row_length = shape.max_position_embeddings + 1  # one more, since each token is trained to tell the next one

    tokenizer = train_tokenizer(write_stories(range(TOKENIZER_STORIES)), shape.vocab_size)
    rows = training_rows(tokenizer, arguments.steps * arguments.rows_per_step, row_length)
    held_out_rows = validation_rows(tokenizer, row_length)
    model = Llama(shape)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{num_parameters} parameters, {len(rows)} training rows, {len(held_out_rows)} validation rows", flush=True)

    training_loss = train(model, rows, arguments.rows_per_step)
    round_to_bfloat16(model)
    validation_loss = evaluate(model, held_out_rows)
    print(f"training loss {training_loss:.4f}, validation loss of the bfloat16 weights {validation_loss:.4f}")

    export(model, tokenizer, arguments.out)
    for path in sorted(arguments.out.iterdir()):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}  {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
