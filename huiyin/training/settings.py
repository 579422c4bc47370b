"""config/train.yaml: what is checked of it here; the rest is LLaMA-Factory's, which refuses what it does not know."""

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from msgspec import Meta

from huiyin.common.errors import UserError
from huiyin.common.settings import AtLeast1, From1To1000, Share, Text, fill, read_mapping

PIPELINE_KEYS = [
    *("stage", "do_train", "do_eval", "dataset", "eval_dataset", "val_size", "dataset_dir", "output_dir"),
    *("default_system", "overwrite_output_dir", "plot_loss", "report_to", "logging_first_step", "use_cpu"),
    *("logging_nan_inf_filter", "include_num_input_tokens_seen", "full_determinism"),
    *("enable_thinking", "preserve_thinking"),
    *("adapter_name_or_path", "create_new_adapter"),  # export merges one adapter into the base model, and no other
]
PREFLIGHT_KEYS = ["bf16", "fp16", "quantization_bit", "enable_liger_kernel", "disable_gradient_checkpointing"]

Values = dict[str, Any]  # settings of LLaMA-Factory
Steps = AtLeast1 | Annotated[float, Meta(gt=0, le=1)]  # a number of steps, or a share of all


@dataclass
class TrainSettings:
    """What is checked, and what holds where train.yaml leaves it out."""

    model_name_or_path: Text
    template: Text
    continue_from: Literal["none", "previous"] = "none"
    finetuning_type: Literal["lora"] = "lora"
    lora_rank: From1To1000 = 16
    lora_target: Text = "all"
    trust_remote_code: bool = False
    cutoff_len: AtLeast1 = 2048
    per_device_train_batch_size: From1To1000 = 1
    gradient_accumulation_steps: From1To1000 = 1
    learning_rate: Annotated[float, Meta(gt=0, le=1)] | None = None  # chosen, as RATES say
    num_train_epochs: Annotated[float, Meta(gt=0, le=1000)] = 3.0
    warmup_ratio: Share = 0.0
    logging_steps: Steps = 500
    save_steps: Steps = 500
    save_total_limit: From1To1000 = 5
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 42
    preprocessing_num_workers: From1To1000 = 1


class Loader(yaml.SafeLoader):
    """Reads YAML like LLaMA-Factory: 1e-3 is a number, 2024-01-01 and << are text."""

    yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in resolvers if not tag.endswith(("timestamp", "merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:  # LLaMA-Factory needs text, and JSON cannot sort numbers among texts
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(problem="a name that is no text", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+\Z"), "+-0123456789")


def read_train_settings(path: Path) -> Values:
    """Return the settings for LLaMA-Factory in the file at `path`, and the defaults of those that are checked."""
    given = read_mapping(path, Loader)
    for name in [*PIPELINE_KEYS, *PREFLIGHT_KEYS]:
        if name in given:
            owner = "chosen in preflight.yaml" if name in PREFLIGHT_KEYS else "set by the pipeline"
            raise UserError(f"{path}: {name} is {owner}; remove it")
    for name in ("model_name_or_path", "template"):
        if not given.get(name):
            raise UserError(f"{path}: {name} is missing")
    checked = {field.name for field in fields(TrainSettings)}
    texts = {name: text for name, text in read_mapping(path).items() if name in checked}
    return {**given, **asdict(fill(TrainSettings, texts, path))}
