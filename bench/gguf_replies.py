"""Does the GGUF file say what the merged model says? Greedy replies of llama-server and of transformers, side by side.

    python bench/gguf_replies.py data/CONFIG/TARGET [--replies 20] [--tokens 40] [--types f16 q8_0]

The folder has a dataset and an exported model, of which a file of each type is written. Transformers computes in 32
bits; llama-server is given the conversation as messages and makes the prompt itself, with the template in the file.
The table has the differences between the log probabilities (nats) of the ten tokens that are the likeliest to begin a
reply, and for each reply that parts from the other the position of that token, and how much likelier transformers finds
its own there than that of llama-server.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from huiyin.llm.embedded import Embedded
from huiyin.serving.ask import messages_of, next_token
from huiyin.serving.gguf import RANKED, TYPES, write_gguf

Tokens = list[int]


class Reference:
    """The model in `folder`, computed in 32 bits."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.end = self.tokenizer.eos_token_id

    def prompt(self, messages: list[dict[str, str]]) -> Tokens:
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)

    def reply(self, prompt: Tokens, most: int) -> Tokens:
        """Return the likeliest tokens after `prompt`, `most` of them or up to the end of the reply, which is one."""
        given = torch.tensor([prompt])
        options = {"do_sample": False, **dict.fromkeys(["temperature", "top_p", "top_k"])}
        ends = {"eos_token_id": self.end, "pad_token_id": self.end}
        return self.model.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=most, **options, **ends
        )[0, len(prompt) :].tolist()

    def gap(self, tokens: Tokens, one: int, other: int) -> float:
        """Return how much likelier (nats) token `one` is after `tokens` than the `other`."""
        logits = self.model(torch.tensor([tokens])).logits[0, -1]
        return (logits[one] - logits[other]).item()


class Llama:
    """llama-server with the model in the file `path`."""

    def __init__(self, path: Path, end: int) -> None:
        self.embedded, self.end = Embedded(str(path), 2048, 1, torch.get_num_threads()), end

    def reply(self, messages: list[dict[str, str]], most: int) -> tuple[int, Tokens]:
        """Return (the number of tokens of the prompt, the tokens of the reply), as `Reference.reply`."""
        asked = {"messages": messages, "temperature": 0, "max_tokens": most, "logprobs": True, "top_logprobs": 1}
        answer = self.embedded.server.handle_chat_completions({**asked, "cache_prompt": False})
        choice = answer["choices"][0]
        tokens = [token["id"] for token in choice["logprobs"]["content"]]
        ended = choice["finish_reason"] == "stop" and tokens[-1:] != [self.end]
        return answer["usage"]["prompt_tokens"], tokens + [self.end] * ended

    def differences(self, expected: dict[str, Any]) -> list[float]:
        """Return by how much the log probabilities of the next tokens differ from those `expected`."""
        _, found = self.embedded.likeliest(expected["prompt"], RANKED * len(expected["likeliest"]))
        return [abs(found[token] - known) for token, known in expected["likeliest"]]


def compare(reference: Reference, llama: Llama, talks: Sequence[Any], most: int) -> tuple[int, list[str]]:
    """Return (how many replies are the same, where the others part). talks: (messages, prompt, reply of `reference`)"""
    parted = []
    for messages, prompt, ours in talks:
        size, theirs = llama.reply(messages, most)
        if size != len(prompt):
            raise SystemExit(f"llama-server reads {size} tokens where the template makes {len(prompt)}")
        if theirs != ours:
            place = next(place for place, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other)
            gap = reference.gap(prompt + ours[:place], ours[place], theirs[place])
            parted.append(f"{place + 1} of {len(ours)}: {gap:.3f}")
    return len(talks) - len(parted), parted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--replies", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=["f16", "q8_0"])
    args = parser.parse_args()
    merged = args.target / "exported/merged"
    rows = json.loads((args.target / "generated/alpaca_eval.json").read_text(encoding="utf-8"))
    rows = rows[:: max(1, len(rows) // args.replies)][: args.replies]
    with torch.inference_mode(), tempfile.TemporaryDirectory(dir=args.target) as work:
        reference, talks = Reference(merged), []
        expected = [next_token(reference.model, reference.tokenizer, row) for row in rows]
        for row in rows:
            prompt = reference.prompt(messages_of(row))
            talks.append((messages_of(row), prompt, reference.reply(prompt, args.tokens)))
        print(f"| {len(talks)} replies of at most {args.tokens} tokens | mean | most | the same | parted at: by |")
        print("|---|---|---|---|---|")
        for kind in args.types:
            path = Path(work) / f"{kind}.gguf"
            write_gguf(merged, path, kind, "bench")
            llama = Llama(path, reference.end)
            apart = [difference for one in expected for difference in llama.differences(one)]
            same, parted = compare(reference, llama, talks, args.tokens)
            print(f"| {kind} | {fmean(apart):.4f} | {max(apart):.4f} | {same} | {'; '.join(parted)} |", flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
