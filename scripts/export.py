"""Merge the adapter into its base model and make it ready to talk.

    python scripts/export.py data/default/10001/trained --generated data/default/10001/generated --name huiyin-10001 \\
        --config config/export.yaml --cache .cache --llm config/llm.yaml --out data/default/10001/exported

Writes merged/ and Modelfile. With Ollama as the language model's backend it also creates the Ollama model. Either way
the exported model is asked one question; the receipt says which of the two answered.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import yaml

from common.errors import Mistake, run
from common.settings import AtLeast1, read_mapping, read_settings
from common.stage import Stage, arguments, need
from llm.backend import Unavailable, Unusable
from llm.client import llm_arguments, open_ollama, read_llm_settings
from llm.ollama import tagged
from training.llamafactory import answer, environment, run_program

EXPECTED = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
QUESTION_TOKENS = 60


@dataclass
class Settings:
    num_ctx: AtLeast1 = 2048
    temperature: float = 0.8
    top_p: float = 0.9
    question: str = "在吗？"

    PRESETS: ClassVar = {"default": {}}


def merge(trained, system, cache, work):
    """Merge with LLaMA-Factory into the folder work/merged and return that folder."""
    used = read_mapping(trained / "train.yaml", yaml.SafeLoader)
    merged = work / "merged"
    values = {
        "model_name_or_path": used["model_name_or_path"], "adapter_name_or_path": str((trained / "adapter").absolute()),
        "template": used["template"], "trust_remote_code": bool(used.get("trust_remote_code")),
        "finetuning_type": "lora", "default_system": system, "export_dir": str(merged.absolute()), "export_size": 2,
        "export_device": "cpu", "export_legacy_format": False,
    }
    run_program("export", values, work, environment("none", cache, work))
    return merged


def check_merged(merged):
    """Raise `Mistake` unless every file of a loadable model is there; it has been seen to end well without them."""
    index = merged / "model.safetensors.index.json"
    weights = ["model.safetensors"]
    if index.exists():
        weights = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in [*EXPECTED, *weights]:
        need(merged / name, "LLaMA-Factory should have written it; export again")


def put_rope_theta_on_top(config):
    """Ollama reads rope_theta at the top level of config.json only; without it the model would talk nonsense."""
    values = json.loads(config.read_text(encoding="utf-8"))
    if "rope_theta" not in values:
        try:
            values["rope_theta"] = values["rope_parameters"]["rope_theta"]
        except KeyError:
            raise Mistake(f"{config}: no rope_theta; this base model cannot be served by Ollama") from None
        config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_modelfile(path):
    """Return (template, stop texts) of LLaMA-Factory's Modelfile: the prompt it trained with, in Ollama's words."""
    text = path.read_text(encoding="utf-8")
    template = re.search(r'^TEMPLATE """(.*?)"""$', text, re.MULTILINE | re.DOTALL)
    if not template:
        raise Mistake(f"{path}: no TEMPLATE in it; LLaMA-Factory's template of this base model is not known to Ollama")
    return template[1], re.findall(r'^PARAMETER stop "(.*)"$', text, re.MULTILINE)


def modelfile(template, system, parameters):
    lines = ["FROM ./merged", "", f'TEMPLATE """{template}"""', "", f'SYSTEM """{system}"""', ""]
    for name, value in parameters.items():
        lines += [f"PARAMETER {name} {json.dumps(item, ensure_ascii=False)}"
                  for item in (value if isinstance(value, list) else [value])]
    return "\n".join(lines) + "\n"


def create_in_ollama(ollama, merged, template, system, parameters, ours):
    """Create the Ollama model and return its digest; one of that name which we did not make stays as it is.

    The file `ours` holds the digest of the one we made: a run may end between creating the model and its receipt.
    """
    present = ollama.models().get(tagged(ollama.model))
    if present and not (ours.exists() and ours.read_text() == present):
        raise Mistake(f"Ollama already has a model {ollama.model} which this pipeline did not make; "
                      f"rename it (ollama cp) and remove it: ollama rm {ollama.model}")
    files = {file.name: file for file in sorted(merged.iterdir()) if file.suffix in (".safetensors", ".json")}
    digest = ollama.create(files, template, system, parameters)
    ours.write_text(digest)
    return digest


def main():
    parser = arguments(__doc__, "trained")
    parser.add_argument("--generated", type=Path, required=True, metavar="FOLDER", help="the dataset")
    parser.add_argument("--name", required=True, help="name of the Ollama model")
    parser.add_argument("--cache", type=Path, required=True, metavar="FOLDER", help="keeps the base models")
    llm_arguments(parser, answers=False)
    args = parser.parse_args()
    settings = read_settings(args.config, Settings)
    llm = read_llm_settings(args)

    with Stage("export", args.out, packages=["llamafactory", "transformers", "peft", "torch"]) as stage:
        stage.use(args.config, settings)
        for name in ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "train.yaml"):
            stage.input(need(args.trained / name, "`make train` makes it"))
        system = stage.input(args.generated / "system.txt").read_text(encoding="utf-8")
        work = args.out / ".work.part"
        written = merge(args.trained, system, args.cache, work)
        check_merged(written)
        put_rope_theta_on_top(written / "config.json")
        template, stop = read_modelfile(written / "Modelfile")
        (written / "Modelfile").unlink()  # its SYSTEM and num_ctx are not ours
        parameters = {"stop": stop, "num_ctx": settings.num_ctx, "temperature": settings.temperature,
                      "top_p": settings.top_p}
        stage.output("Modelfile").write_text(modelfile(template, system, parameters), encoding="utf-8")

        if llm.backend == "ollama":
            ollama = open_ollama(llm, args.ollama_url, args.name, settings.num_ctx)
            digest = create_in_ollama(ollama, written, template, system, parameters, args.out / ".created")
            stage.receipt["ollama"] = {"name": args.name, "digest": digest}
            question = [{"role": "user", "content": settings.question}]
            asked = "the Ollama model"
            try:
                reply = ollama.chat(question, None, settings.temperature, 0, QUESTION_TOKENS, may_be_cut=True).text
            except (Unavailable, Unusable) as error:
                raise Mistake(f"{args.name} is made but does not answer: {error}; export again") from None
        else:
            asked = "the merged model, loaded once"
            row = {"system": system, "history": [], "instruction": settings.question}
            values = {"model_name_or_path": str(written)}
            [reply] = answer(values, None, [row], work, environment("none", args.cache, work))
        stage.receipt["asked"] = {"who": asked, "question": settings.question, "reply": reply}
        merged = stage.output("merged")
        written.rename(merged)
        shutil.rmtree(work)
        stage.ledger.read = stage.ledger.written = len(list(merged.iterdir()))


if __name__ == "__main__":
    run(main)
