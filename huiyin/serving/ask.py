"""Ask models for losses and replies; a program of its own, so that the card is free when it ends.

    python huiyin/serving/ask.py QUESTIONS.json ANSWERS.jsonl

In:  {"tokenizer": folder, "lean": keep the weights as they are stored, "models": [{"folder", "adapter": folder or
     null, "samples": rows for the loss, "batches": [{"rows": to reply to, "seed", "options": of transformers'
     `generate`}, ...], "prompts": rows for the next token}, ...]}; rows are those of an Alpaca dataset, "beginning" is
     what the reply begins with
Out: one model after the other, a line for each sample, {"words": nats of each token of the reply, "end": nats of the
     mark that ends it}, one for each batch, [{"text", "ended": by the model itself}, ...], and one for each prompt,
     {"prompt": its text, "tokens": their number, "likeliest": [[next token, its log probability], ...]}
Lines that are there already are not asked again, so a run that was killed goes on. It prints an empty line after each
row. The processor computes in 32 bits, a card in the type of the weights.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch.nn.functional import cross_entropy, linear
from transformers import AutoModelForCausalLM, AutoTokenizer

ROLES = ("user", "assistant")
LIKELIEST = 10  # tokens that may follow a prompt


def messages_of(row: dict[str, Any]) -> list[dict[str, str]]:
    """Return the conversation of an Alpaca row up to the reply."""
    system = [{"role": "system", "content": row["system"]}] if row["system"] else []
    texts = [*itertools.chain(*row["history"]), row["instruction"]]
    return [*system, *({"role": role, "content": text} for role, text in zip(itertools.cycle(ROLES), texts))]


class WideLinear(torch.nn.Linear):
    """Computes in 32 bits with weights that are kept in 16."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return linear(values, self.weight.float(), None if self.bias is None else self.bias.float())


class WideEmbedding(torch.nn.Embedding):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens).float()


def load(folder: str, adapter: str | None, lean: bool) -> Any:
    """Return the model. On the processor it computes in 32 bits; if `lean`, the large weights stay as they are in the
    file, and each is widened, which is exact, when it is used: half the memory, and slower."""
    on_card = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto" if lean or on_card else torch.float32)
    if lean and not on_card:
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                module.__class__ = WideLinear if isinstance(module, torch.nn.Linear) else WideEmbedding
            else:
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.float()
    model = model.to("cuda" if on_card else "cpu")
    if adapter:
        from peft import PeftModel  # takes seconds, and a merged model needs none

        model = PeftModel.from_pretrained(model, adapter)
    return model.eval()


def losses(model: Any, tokenizer: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Return the cross-entropies (nats) of the reply's words, token by token, and of the mark that ends it. The reply
    is tokenized apart from its prompt as in training."""
    messages = messages_of(row)
    prompt = tokenizer.apply_chat_template(messages, tokenize=False)
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": row["output"]}], tokenize=False)
    before, reply = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, whole[len(prompt) :]))
    tokens = torch.tensor([before + reply]).to(model.device)
    logits = model(input_ids=tokens, logits_to_keep=len(reply) + 1).logits[0, :-1].float()
    each = cross_entropy(logits, tokens[0, len(before) :], reduction="none").tolist()
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    end = max((place for place, number in enumerate(reply) if number in special), default=len(reply) - 1)
    return {"words": each[:end], "end": each[end]}


def next_token(model: Any, tokenizer: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Return the prompt of the row, without a first token that whoever reads a text adds, the number of its tokens, and
    those that are the likeliest to follow it."""
    prompt = tokenizer.apply_chat_template(messages_of(row), add_generation_prompt=True, tokenize=False)
    tokens = tokenizer.encode(prompt, add_special_tokens=False)
    if tokenizer.init_kwargs.get("add_bos_token"):
        prompt = prompt.removeprefix(tokenizer.bos_token)
    logits = model(input_ids=torch.tensor([tokens]).to(model.device), logits_to_keep=1).logits[0, -1].float()
    likeliest = logits.log_softmax(-1).topk(LIKELIEST)
    pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return {"prompt": prompt, "tokens": len(tokens), "likeliest": list(pairs)}


def replies(model: Any, tokenizer: Any, batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a reply to each row of `batch`, which are drawn together: the seed is that of the batch."""
    prompts = [
        tokenizer.apply_chat_template(messages_of(row), add_generation_prompt=True, tokenize=False)
        + row.get("beginning", "")
        for row in batch["rows"]
    ]
    given = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt").to(model.device)
    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    torch.manual_seed(batch["seed"])
    options = {"eos_token_id": sorted(ends), "pad_token_id": tokenizer.pad_token_id, **batch["options"]}
    drawn = model.generate(**given, **options)[:, given["input_ids"].shape[1] :].tolist()
    lengths = [next((place for place, token in enumerate(tokens) if token in ends), None) for tokens in drawn]
    return [
        {"text": tokenizer.decode(tokens[:length], skip_special_tokens=True), "ended": length is not None}
        for tokens, length in zip(drawn, lengths, strict=True)
    ]


def whole_lines(file: IO[bytes]) -> int:
    """Return the number of lines in a file that is open to be appended to, after removing a last one without an end."""
    file.seek(0)
    lines = file.read().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    file.truncate(sum(map(len, whole)))
    return len(whole)


def answers_of(given: dict[str, Any], tokenizer: Any, skip: int) -> Iterator[tuple[Any, int]]:
    """Yield (answer, number of its rows), without the first `skip` ones. One model at a time is in memory."""
    for asked in given["models"]:
        work: list[tuple[Callable[..., Any], dict[str, Any], int]] = [
            *((losses, row, 1) for row in asked["samples"]),
            *((replies, batch, len(batch["rows"])) for batch in asked["batches"]),
            *((next_token, row, 1) for row in asked["prompts"]),
        ]
        skip, left = max(skip - len(work), 0), work[skip:]
        model = load(asked["folder"], asked["adapter"], given["lean"]) if left else None
        for function, item, rows in left:
            yield function(model, tokenizer, item), rows
        del model


@torch.inference_mode()
def main(questions: str, answers: str) -> None:
    given = json.loads(Path(questions).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(given["tokenizer"], padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with open(answers, "a+b") as file:
        for answer, rows in answers_of(given, tokenizer, skip=whole_lines(file)):
            file.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
            file.flush()
            print("\n" * rows, end="", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
