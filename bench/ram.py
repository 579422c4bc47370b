"""Compare the predicted memory of a training on the processor with what the training takes.

    PYTHONPATH=. python bench/ram.py FOLDER

FOLDER, a new one, gets models of known sizes with random weights, in turn, and invented rows that are all as long as
`cutoff_len`. Each training is LLaMA-Factory's program as train.py starts it, for `STEPS` steps; what it takes is the
most memory that Linux has seen of its process (VmHWM). Exits with status 1 if a prediction is off by more.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from huiyin.training.llamafactory import PROGRAM, environment
from huiyin.training.memory import format_size, ram_bytes
from huiyin.training.models import Model, read_models
from scripts.demo.tiny import make_vocabulary, tokenizer_files

ROOT = Path(__file__).parent.parent
STEPS, WITHIN = 2, 0.1
TRAININGS = [  # model, layers, rows of a micro-batch, tokens of each, checkpointing
    ("HuggingFaceTB/SmolLM2-135M-Instruct", 30, 2, 512, True),
    ("Qwen/Qwen3-0.6B", 6, 1, 512, True),
    ("google/gemma-3-270m-it", 6, 1, 512, True),
    ("HuggingFaceTB/SmolLM2-135M-Instruct", 30, 1, 256, False),
    ("Qwen/Qwen2.5-1.5B-Instruct", 4, 2, 256, True),
    ("HuggingFaceTB/SmolLM2-360M-Instruct", 32, 1, 384, True),
]
CREATE = """import json, sys, torch, transformers
config = transformers.AutoConfig.for_model(**json.loads(sys.argv[1]))
transformers.AutoModelForCausalLM.from_config(config).save_pretrained(sys.argv[2])"""
KINDS = {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3", "LlamaForCausalLM": "llama"}
KINDS |= {"Gemma3ForCausalLM": "gemma3_text"}


def write_model(model: Model, layers: int, folder: Path) -> None:
    """Write a model of these sizes with random weights in bf16, and the tiny tokenizer."""
    sizes = {name: value for name, value in asdict(model.sizes).items() if value is not None}
    config = {**sizes, "num_hidden_layers": layers, "dtype": "bfloat16", "model_type": KINDS[model.architecture]}
    subprocess.run([sys.executable, "-c", CREATE, json.dumps(config), folder], check=True)
    for name, content in tokenizer_files(*make_vocabulary()).items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")


def write_rows(tokens: int, folder: Path) -> None:
    """Write a dataset whose rows are longer than so many tokens: LLaMA-Factory cuts them."""
    folder.mkdir(exist_ok=True)
    rows = [{"instruction": "的" * tokens, "input": "", "output": "一" * tokens, "system": ""}] * 8
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}), encoding="utf-8")


def most_memory(base: Path, rows: Path, batch: int, tokens: int, checkpointing: bool, folder: Path) -> int:
    """Return the most bytes that a training had in memory."""
    folder.mkdir()
    values = {
        **{"model_name_or_path": str(base), "template": "qwen", "stage": "sft", "do_train": True},
        **{"finetuning_type": "lora", "lora_rank": 16, "lora_target": "all", "cutoff_len": tokens},
        **{"dataset": "rows", "dataset_dir": str(rows), "output_dir": str(folder), "max_steps": STEPS},
        **{"per_device_train_batch_size": batch, "gradient_accumulation_steps": 1, "save_strategy": "no"},
        **{"disable_gradient_checkpointing": not checkpointing, "use_cpu": True, "full_determinism": True},
        **{"report_to": "none", "preprocessing_num_workers": 1},
    }
    settings = folder / "train.yaml"
    settings.write_text(json.dumps(values), encoding="utf-8")
    variables = {**environment("none", folder / "cache", folder, threads=1), "PYTHONPATH": str(ROOT)}
    with open(folder / "log", "w", encoding="utf-8") as log:
        child = subprocess.Popen([*PROGRAM, "train", settings], env=variables, stdout=log, stderr=log)
        _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"the training failed; its output is in {folder}/log")
    return used.ru_maxrss * 1024


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder.absolute()
    folder.mkdir(parents=True)
    models, worst = read_models(ROOT / "config/models.yaml"), 0.0
    print("| model | layers | rows x tokens | checkpointing | predicted | seen | error |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for number, (name, layers, batch, tokens, checkpointing) in enumerate(TRAININGS):
        base = folder / f"{name.split('/')[1]}-{layers}"
        if not base.exists():
            write_model(models[name], layers, base)
        write_rows(tokens, folder / "rows")
        seen = most_memory(base, folder / "rows", batch, tokens, checkpointing, folder / f"run-{number}")
        shape = replace(models[name].shape, layers=layers)
        predicted = ram_bytes(shape, batch * tokens, shape.lora_parameters(16, ["all"]), "fp32", checkpointing)
        worst = max(worst, abs(predicted / seen - 1))
        print(
            f"| {name} | {layers} | {batch} x {tokens} | {'yes' if checkpointing else 'no'} | {format_size(predicted)} "
            f"| {format_size(seen)} | {predicted / seen - 1:+.1%} |",
            flush=True,
        )
    if worst > WITHIN:
        sys.exit(f"a prediction is {worst:.0%} off")


if __name__ == "__main__":
    main()
