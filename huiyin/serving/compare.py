"""Is the merged model the trained one? Loss and replies of both: python compare.py QUESTIONS.json ANSWERS.json

In:  {"base", "adapter", "merged": folders, "samples": rows for the loss, "asked": rows to reply to}
Out: {"trained" and "merged": {"loss": mean over the samples, "replies": [greedy replies]}}
It prints an empty line when a row is done.
"""

import json
import sys
from pathlib import Path

import torch
from huiyin.serving.answer import REPLY_TOKENS, messages_of
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def loss(model, tokenizer, row):
    """Mean cross-entropy (nats a token) of the row's reply, given its prompt; the two meet as in the training."""
    messages = messages_of(row)
    prompt = tokenizer.apply_chat_template(messages, tokenize=False)
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": row["output"]}], tokenize=False)
    asked, said = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, whole[len(prompt) :]))
    tokens = torch.tensor([asked + said])
    labels = torch.tensor([[-100] * len(asked) + said])
    return model(input_ids=tokens, labels=labels).loss.item()


def reply(model, tokenizer, row):
    prompt = tokenizer.apply_chat_template(messages_of(row), return_tensors="pt")
    answer = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=REPLY_TOKENS,
    )
    return tokenizer.decode(answer[0, prompt.shape[1] :], skip_special_tokens=True)


def told_of(results):
    for result in results:
        print(flush=True)
        yield result


@torch.inference_mode()
def main(questions, answers):
    told = json.loads(Path(questions).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(told["merged"])
    found = {}
    for name, folder, adapter in (("trained", told["base"], told["adapter"]), ("merged", told["merged"], None)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")  # one after the other: memory holds one
        model = PeftModel.from_pretrained(model, adapter) if adapter else model
        model.eval()
        losses = list(told_of(loss(model, tokenizer, row) for row in told["samples"]))
        replies = list(told_of(reply(model, tokenizer, row) for row in told["asked"]))
        found[name] = {"loss": sum(losses) / len(losses), "replies": replies}
        del model
    Path(answers).write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
