"""Ask a model, with or without an adapter, in a process of its own: python answer.py QUESTIONS.json REPLIES.json"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

REPLY_TOKENS = 60


def messages_of(row):
    """The conversation of an Alpaca row up to the reply."""
    system = [{"role": "system", "content": row["system"]}] if row["system"] else []
    history = [
        {"role": role, "content": text}
        for exchange in row["history"]
        for role, text in zip(("user", "assistant"), exchange, strict=True)
    ]
    return [*system, *history, {"role": "user", "content": row["instruction"]}]


def main(questions, replies):
    asked = json.loads(Path(questions).read_text(encoding="utf-8"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype="auto").to(device)
    if asked["adapter"]:
        model = PeftModel.from_pretrained(model, asked["adapter"])
    said = []
    for row in asked["rows"]:
        prompt = tokenizer.apply_chat_template(messages_of(row), add_generation_prompt=True, return_tensors="pt")
        prompt = prompt.to(device)
        answer = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=REPLY_TOKENS
        )
        said.append(tokenizer.decode(answer[0, prompt.shape[1] :], skip_special_tokens=True))
    Path(replies).write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
