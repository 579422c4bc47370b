"""Merge the adapter into its base model and make it ready to talk.

    python scripts/export.py data/default/10001/trained --generated data/default/10001/generated --name huiyin-10001 \\
        --config config/export.yaml --cache .cache --llm config/llm.yaml --out data/default/10001/exported

Writes merged/ and Modelfile. The merged model must be the trained one: its loss on held-out rows is compared. With
Ollama as the language model's backend it also creates the Ollama model, whose digest then lies beside the folder.
Either way the exported model is asked one question; the receipt says which of the two answered.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import psutil
import yaml

from huiyin.common.errors import UserError, run
from huiyin.common.settings import AtLeast0, AtLeast1, read_mapping, read_settings
from huiyin.common.stage import Stage, arguments, digest_tree, need, read_receipt
from huiyin.llm.backend import ChatRequest, Unavailable, Unusable
from huiyin.llm.client import llm_arguments, open_ollama, read_llm_settings
from huiyin.llm.ollama import tagged
from huiyin.serving.ollama_limits import check_served, choose_quantize, flatten_rope
from huiyin.serving.process import ask
from huiyin.serving.template import modelfile, read_prompt
from huiyin.training.base import check_disk
from huiyin.training.llamafactory import environment, run_program
from huiyin.training.memory import GIB, as_text

EXPECTED = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "Modelfile"]
SAMPLING = ["temperature", "top_p", "top_k", "repeat_penalty", "num_predict"]
QUESTION_TOKENS = 60
SAMPLES, SHOWN = 50, 5  # held-out rows for the loss, and for replies to look at
TOLERANCE = {"float32": 1e-4}  # of the loss, as a share; what is merged in 16 bits is rounded
ROUNDED = 0.01
PROGRAMS = 1.5 * GIB  # torch and LLaMA-Factory themselves
OLLAMA_COPIES = 3.3  # of the weights: as they come, converted, the layer, and the result in 4 bits


@dataclass
class Settings:
    num_ctx: AtLeast1 | None = None
    fixed_system: bool = False
    quantize: Literal["auto", "q4_K_M", "q4_K_S", "q8_0", "f16", "bf16"] = "auto"
    temperature: float = 0.8
    top_p: float = 0.9
    top_k: AtLeast0 = 40
    repeat_penalty: float = 1.0
    num_predict: AtLeast1 = 256
    question: str = "在吗？"

    PRESETS: ClassVar = {"default": {}}


def check_base(base, digests):
    """Raise `UserError` unless the base model is the very one of the training."""
    now = digest_tree(base) if base.is_dir() else {}
    changed = sorted(name for name, digest in digests.items() if now.get(name) != digest)
    if changed:
        raise UserError(
            f"{base}: {', '.join(changed)} changed or gone since the training; bring the base model back, "
            "or train again (make clean-train)"
        )


def check_memory(size, memory, swap):
    """Say what merging weights of `size` bytes needs, and raise `UserError` where it cannot be had."""
    needed, free = size + PROGRAMS, memory.available + swap.free
    print(f"export: merging needs about {as_text(needed)} of RAM, {as_text(free)} are free", flush=True)
    if needed > free:
        raise UserError(
            f"merging needs {as_text(needed)} of RAM and {as_text(free)} are free; close programs, or in "
            "WSL, which gets half of the machine's, set memory= in .wslconfig"
        )


def check_room(out, size, store):
    """Raise `UserError` unless the disks hold the merged model and what Ollama makes of it in its folder `store`."""
    together = store is not None and store.stat().st_dev == out.stat().st_dev
    copies = OLLAMA_COPIES if together else 0
    check_disk(out, (1 + copies) * size, "the merged model" + (" with Ollama's copies of it" if together else ""))
    if store is not None and not together:
        check_disk(store, OLLAMA_COPIES * size, "Ollama, for its copies of the model,")


def check_name(ollama, ours):
    """Raise `UserError` where Ollama has a model of that name which we did not make; `ours` holds the digest of ours."""
    present = ollama.models().get(tagged(ollama.model))
    if present and not (ours.exists() and ours.read_text() == present):
        raise UserError(
            f"Ollama already has a model {ollama.model} which this pipeline did not make; "
            f"rename it (ollama cp) and remove it: ollama rm {ollama.model}"
        )


def merge(used, trained, cache, work, merged):
    """Merge with LLaMA-Factory into the folder `merged`; `work` gets its log. On the processor, in the base's type."""
    values = {
        "model_name_or_path": used["model_name_or_path"],
        "adapter_name_or_path": str((trained / "adapter").absolute()),
        "template": used["template"],
        "trust_remote_code": bool(used.get("trust_remote_code")),
        "finetuning_type": "lora",
        "default_system": "",
        "export_dir": str(merged.absolute()),
        "export_size": 2,
        "export_device": "cpu",
        "export_legacy_format": False,
    }
    run_program("export", values, work, environment("none", cache, work))
    check_merged(merged)


def check_merged(merged):
    """Raise `UserError` unless every file of a loadable model is there; it has been seen to end well without them."""
    index = merged / "model.safetensors.index.json"
    weights = ["model.safetensors"]
    if index.exists():
        weights = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in [*EXPECTED, *weights]:
        need(merged / name, "LLaMA-Factory should have written it; export again")


def write_chat_template(merged, prompt, system, fixed):
    """Let transformers, vLLM and llama-server, too, ask with the prompt of the training instead of the base model's."""
    (merged / "chat_template.jinja").write_text(prompt.jinja(system, fixed), encoding="utf-8")
    path = merged / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("chat_template", None)
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def check_loss(trained, merged, kind, samples):
    """Raise `UserError` unless the two mean losses agree as weights of the type `kind` can; return the difference."""
    difference, allowed = abs(merged - trained) / trained, TOLERANCE.get(kind, ROUNDED)
    if not difference <= allowed:  # nor is NaN well
        raise UserError(
            f"the merged model is not the trained one: its mean loss on {samples} rows is {merged:.4f}, with "
            f"the adapter it is {trained:.4f}, more than {allowed:.2%} apart; export again"
        )
    return difference


def check_merge(base, adapter, merged, generated, question, system, work, variables):
    """Compare the merged model with the trained one; return (what was found, the merged model's reply to `question`).

    On a terminal the replies of both are shown; they are kept nowhere.
    """
    rows = [json.loads((generated / f"{name}.json").read_text(encoding="utf-8")) for name in ("alpaca_eval", "alpaca")]
    samples = (rows[0] or rows[1])[-SAMPLES:]  # too small a dataset keeps nothing for evaluation
    asked = samples[-SHOWN:]
    question_row = {"system": system, "history": [], "instruction": question}
    models = [(base, adapter), (merged, None)]
    trained, after = ask(models, [*asked, question_row], work, variables, samples, tokenizer=merged)
    if sys.stdout.isatty():  # they are talk of the group: not for a log
        for row, *replies in zip(asked, trained["replies"], after["replies"], strict=False):
            print(f"export: {row['instruction']!r}: trained {replies[0]!r}, merged {replies[1]!r}", flush=True)
    config = json.loads((merged / "config.json").read_text(encoding="utf-8"))
    kind = config.get("dtype", config.get("torch_dtype"))
    difference = check_loss(trained["loss"], after["loss"], kind, len(samples))
    print(f"export: mean loss on {len(samples)} rows {trained['loss']:.4f} trained, {after['loss']:.4f} merged")
    return {
        "rows": len(samples),
        "trained_loss": trained["loss"],
        "merged_loss": after["loss"],
        "difference": difference,
    }, after["replies"][-1]


def create(ollama, merged, quantize, template, system, parameters, ours):
    """Create the Ollama model and return its digest; the file `ours` remembers that it is ours."""
    files = {
        file.name: file
        for file in sorted(merged.iterdir())
        if file.suffix in (".safetensors", ".json") or file.name == "tokenizer.model"
    }
    digest = ollama.create(files, quantize, template, system, parameters)
    ours.write_text(digest)
    return digest


def model_card(trained, used):
    """Where the model comes from: what its receipt says besides its own making."""
    return {
        "base_model": {**trained["base_model"], "folder": used["model_name_or_path"]},
        "dataset": trained["inputs"],
        "training": {"settings": trained["settings"], "versions": trained["versions"]},
        "losses": trained["results"],
    }


def main(argv=None):
    parser = arguments(__doc__, "trained")
    parser.add_argument("--generated", type=Path, required=True, metavar="FOLDER", help="the dataset")
    parser.add_argument("--name", required=True, help="name of the Ollama model")
    parser.add_argument("--cache", type=Path, required=True, metavar="FOLDER", help="keeps the base models")
    llm_arguments(parser, answers=False)
    args = parser.parse_args(argv)
    settings = read_settings(args.config, Settings)
    llm = read_llm_settings(args)

    with Stage("export", args.out, packages=["llamafactory", "transformers", "peft", "torch"]) as stage:
        stage.use(args.config, settings)
        for name in ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "train.yaml", "receipt.json"):
            stage.input(need(args.trained / name, "`make train` makes it"))
        for name in ("alpaca.json", "alpaca_eval.json"):
            stage.input(need(args.generated / name, "`make gen` makes it"))
        system = stage.input(args.generated / "system.txt").read_text(encoding="utf-8")
        used, trained = read_mapping(args.trained / "train.yaml", yaml.SafeLoader), read_receipt(args.trained)
        base, ours = Path(used["model_name_or_path"]), args.out.with_name(f"{args.out.name}.ollama")
        check_base(base, trained["base_model"]["sha256"])
        check_served(used["template"], base / "config.json", llm.backend)
        num_ctx = settings.num_ctx or used.get("cutoff_len", 2048)
        ollama = open_ollama(llm, args.ollama_url, args.name, num_ctx) if llm.backend == "ollama" else None
        if ollama:
            check_name(ollama, ours)
        size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        check_memory(size, psutil.virtual_memory(), psutil.swap_memory())
        check_room(args.out, size, ollama and ollama.store())

        work, merged = args.out / ".work", stage.output("merged")
        shutil.rmtree(work, ignore_errors=True)
        merge(used, args.trained, args.cache, work, merged)
        prompt = read_prompt(merged / "Modelfile", merged / "tokenizer_config.json")
        (merged / "Modelfile").unlink()  # its num_ctx is not ours, and it knows no system text
        flatten_rope(merged / "config.json", needed=ollama is not None)
        write_chat_template(merged, prompt, system, settings.fixed_system)
        check, reply = check_merge(
            base,
            args.trained / "adapter",
            merged,
            args.generated,
            settings.question,
            system,
            work,
            environment("none", args.cache, work),
        )

        parameters = {"stop": prompt.stop, "num_ctx": num_ctx, **{name: getattr(settings, name) for name in SAMPLING}}
        quantize, fixed = choose_quantize(settings.quantize, merged), settings.fixed_system
        stage.output("Modelfile").write_text(modelfile(prompt, system, fixed, parameters), encoding="utf-8")
        stage.receipt |= {
            **model_card(trained, used),
            "check": check,
            "parameters": parameters,
            "quantize": quantize,
            "fixed_system": fixed,
        }
        asked = "the merged model, loaded once"
        if ollama:
            template = prompt.go_with(system, fixed) if fixed else prompt.go()
            digest = create(ollama, merged, quantize, template, system, parameters, ours)
            stage.receipt["ollama"] = {"name": args.name, "digest": digest}
            asked = "the Ollama model"
            try:
                question = [{"role": "user", "content": settings.question}]
                request = ChatRequest(question, None, settings.temperature, 0, QUESTION_TOKENS)
                reply = ollama.chat(request, may_be_cut=True).text
            except (Unavailable, Unusable) as error:
                raise UserError(f"{args.name} is made but does not answer: {error}; export again") from None
        stage.receipt["asked"] = {"who": asked, "question": settings.question, "reply": reply}
        shutil.rmtree(work)
        stage.ledger.read = stage.ledger.written = len(list(merged.iterdir()))
    if not ollama:
        print(
            f"export: no Ollama here; where there is one, this makes the model: "
            f"ollama create {args.name} --quantize {quantize} -f {args.out}/Modelfile"
        )


if __name__ == "__main__":
    run(main)
