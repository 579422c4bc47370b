"""Ask models for losses and greedy replies; a program of its own, so that the card is free when it ends.

    python huiyin/serving/ask.py QUESTIONS.json ANSWERS.json

In:  {"tokenizer": folder, "models": [[folder, adapter or null], ...], "samples": rows for the loss, "asked": rows to
     reply to}; rows are those of an Alpaca dataset
Out: for each model {"loss": mean over the samples, null without any, "replies": [...]}
It prints an empty line after each row.
"""

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

REPLY_TOKENS = 60
ROLES = ("user", "assistant")


def messages_of(row: dict[str, Any]) -> list[dict[str, str]]:
    """Return the conversation of an Alpaca row up to the reply."""
    system = [{"role": "system", "content": row["system"]}] if row["system"] else []
    texts = [*itertools.chain(*row["history"]), row["instruction"]]
    return [*system, *({"role": role, "content": text} for role, text in zip(itertools.cycle(ROLES), texts))]


def loss(model: Any, tokenizer: Any, row: dict[str, Any]) -> float:
    """Return the mean cross-entropy (nats per token) of the reply, tokenized apart from its prompt as in training."""
    messages = messages_of(row)
    prompt = tokenizer.apply_chat_template(messages, tokenize=False)
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": row["output"]}], tokenize=False)
    before, reply = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, whole[len(prompt) :]))
    tokens = torch.tensor([before + reply]).to(model.device)
    labels = torch.tensor([[-100] * len(before) + reply]).to(model.device)
    return model(input_ids=tokens, labels=labels).loss.item()


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
    device, results = "cuda" if torch.cuda.is_available() else "cpu", []
    for folder, adapter in given["models"]:  # one after the other, to hold one at a time in memory
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device)
        model = PeftModel.from_pretrained(model, adapter) if adapter else model
        model.eval()
        losses = list(with_lines(loss(model, tokenizer, row) for row in given["samples"]))
        replies = list(with_lines(reply(model, tokenizer, row) for row in given["asked"]))
        results.append({"loss": sum(losses) / len(losses) if losses else None, "replies": replies})
        del model
    Path(answers).write_text(json.dumps(results, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
