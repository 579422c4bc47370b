"""Ask models for losses and greedy replies; a program of its own, so that the card is free when it ends.

    python huiyin/serving/ask.py QUESTIONS.json ANSWERS.json

In:  {"tokenizer": folder, "models": [[folder, adapter or null], ...], "samples": rows for the loss, "asked": rows to
     reply to, "lean": keep the weights as they are stored}; rows are those of an Alpaca dataset
Out: for each model {"loss": {"words": ..., "end": ...}, or null without samples, "replies": [...]}
It prints an empty line after each row. The processor computes in 32 bits, a card in the type of the weights.
"""

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy, linear
from transformers import AutoModelForCausalLM, AutoTokenizer

REPLY_TOKENS = 60
ROLES = ("user", "assistant")


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
    return (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()


def losses(model: Any, tokenizer: Any, row: dict[str, Any]) -> tuple[list[float], float]:
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
    return each[:end], each[end]


def mean_losses(each: list[tuple[list[float], float]]) -> dict[str, float] | None:
    """Return the mean over the words of all rows, and that over their end marks."""
    words = list(itertools.chain.from_iterable(words for words, _ in each))
    return {"words": fmean(words), "end": fmean(end for _, end in each)} if each else None


def reply(model: Any, tokenizer: Any, row: dict[str, Any]) -> str:
    prompt = tokenizer.apply_chat_template(messages_of(row), add_generation_prompt=True, return_tensors="pt")
    prompt = prompt.to(model.device)
    options = {"do_sample": False, "max_new_tokens": REPLY_TOKENS, **dict.fromkeys(["temperature", "top_p", "top_k"])}
    answer = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)
    return tokenizer.decode(answer[0, prompt.shape[1] :], skip_special_tokens=True)


def with_lines(results: Iterable[Any]) -> Iterator[Any]:
    """Yield `results` and print a line after each."""
    for result in results:
        print(flush=True)
        yield result


@torch.inference_mode()
def main(questions: str, answers: str) -> None:
    given = json.loads(Path(questions).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(given["tokenizer"])
    results = []
    for folder, adapter in given["models"]:  # one after the other, to hold one at a time in memory
        model = load(folder, adapter, given["lean"])
        each = list(with_lines(losses(model, tokenizer, row) for row in given["samples"]))
        replies = list(with_lines(reply(model, tokenizer, row) for row in given["asked"]))
        results.append({"loss": mean_losses(each), "replies": replies})
        del model
    Path(answers).write_text(json.dumps(results, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
