"""Fine-tune in several processes: notebook 03's run under `accelerate launch`, one process per GPU.

    accelerate launch --multi_gpu --num_processes 2 tools/finetune.py --profile paper --model llama-3.2-1b

Without `accelerate launch` it is one process. Every process reads its own share of each step's texts, and gradients
are averaged (DDP, PyTorch's DistributedDataParallel). The step stays what the settings say: its batches are divided
among the processes, so GRADIENT_ACCUMULATION must be a multiple of their number. The parameters are notebook 03's, by
its names; adapter, log and `run.json` are where it writes them. Without a GPU the processes share the cores
(`--multi_gpu` starts them there too).

Where one GPU holds the model but not its gradients, optimizer and activations, FSDP divides them, without 4 bits:

    accelerate launch --use_fsdp --fsdp_version 2 --fsdp_state_dict_type FULL_STATE_DICT --num_processes 2 \\
        --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP tools/finetune.py --profile paper --set METHOD lora
"""

import argparse
import ast
import os
import sys
from collections.abc import Mapping
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
if str(PROJECT_ROOT) not in sys.path:  # a script is started with its own folder there
    sys.path.insert(0, str(PROJECT_ROOT))
if os.environ.get("RANK", "0") != "0":  # before tqdm is imported: one bar is enough
    os.environ["TQDM_DISABLE"] = "1"

import nbformat  # noqa: E402
import papermill  # noqa: E402
import torch  # noqa: E402
from accelerate import PartialState  # noqa: E402

from gloss_utils import finetuning, language_models, tiny_llama  # noqa: E402
from gloss_utils.finetuning import TrainingSettings  # noqa: E402
from gloss_utils.paths import show  # noqa: E402
from gloss_utils.splits import load_prepared  # noqa: E402
from tools import course  # noqa: E402

LAUNCHERS = ("FSDP", "DEEPSPEED")  # of accelerate, that divide the model
NOTEBOOK = course.NOTEBOOKS / "03_qlora_finetuning.ipynb"


def setting_names() -> dict[str, str]:
    """What notebook 03 calls each of the trainer's settings, read from its own call: no second list to keep."""
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    source = next(source for source in cells if "settings = TrainingSettings(" in source)
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    (call,) = [call for call in calls if getattr(call.func, "id", "") == "TrainingSettings"]
    return {keyword.arg: keyword.value.id for keyword in call.keywords}


def read_parameters(profile: str, given: dict[str, str]) -> dict:
    """Notebook 03's parameters: its defaults, then the profile's, then those given, each of its annotated type."""
    cell = papermill.inspect_notebook(str(NOTEBOOK))
    types = {NOTEBOOK.stem: {name: found["inferred_type_name"] for name, found in cell.items()}}
    profiled = {name: value for name, value in course.read_profile(profile).items() if name in cell}
    defaults = {name: ast.literal_eval(found["default"]) for name, found in cell.items()}
    return defaults | course.check_parameters(profiled | given, types)


def check_launcher(environment: Mapping[str, str], method: str, gpus: int) -> bool:
    """Whether FSDP (PyTorch's fully sharded data parallel) divides the model; what cannot run is refused.

    accelerate knows FSDP on accelerators only, and without one would go on with DDP. Its first version wants one
    dtype for all parameters, and a 4-bit base cannot be put together again from its parts.
    """
    asked = {name: environment.get(f"ACCELERATE_USE_{name}", "false").lower() == "true" for name in LAUNCHERS}
    if asked["DEEPSPEED"]:
        raise ValueError("DeepSpeed is not supported: launch with --multi_gpu, or with --use_fsdp --fsdp_version 2")
    if asked["FSDP"]:
        whole = "launch with --multi_gpu, a whole model in each process"
        if not gpus:
            raise ValueError(f"FSDP divides a model among GPUs, and there is none here: {whole}")
        if environment.get("FSDP_VERSION", "1") != "2" or "FULL" not in environment.get("FSDP_STATE_DICT_TYPE", ""):
            raise ValueError("FSDP needs --fsdp_version 2 and --fsdp_state_dict_type FULL_STATE_DICT: add both")
        if method == "qlora":
            raise ValueError(f"FSDP does not divide a 4-bit base: set METHOD to lora or full, or {whole}")
    return asked["FSDP"]


def share_batches(settings: TrainingSettings, processes: int) -> None:
    """Refuse a step whose batches cannot be divided among the processes, and say which ones can."""
    if settings.gradient_accumulation % processes:
        texts = settings.batch_size * settings.gradient_accumulation
        raise ValueError(
            f"GRADIENT_ACCUMULATION is {settings.gradient_accumulation}, which {processes} processes cannot share: "
            f"set it to a multiple of {processes}, with TRAIN_BATCH_SIZE so that both still make {texts} texts a step"
        )


def finetune(parameters: dict, data_dir: str, name: str | None = None) -> None:
    """Run notebook 03's fine-tuning in this process, beside the others that the launcher started."""
    processes = PartialState(cpu=not torch.cuda.is_available())
    settings = TrainingSettings(**{setting: parameters[name] for setting, name in setting_names().items()})
    share_batches(settings, processes.num_processes)
    language_models.choose_engine(parameters["ENGINE"])  # a misspelt name is refused before anything is made
    prepared, model = load_prepared(parameters["DATASET"], data_dir), parameters["MODEL"]
    base = prepared.paths.base_model(model)
    if processes.is_main_process and model == language_models.TINY_LLAMA and not base.exists():
        recipe = tiny_llama.Recipe(
            parameters["VOCAB_SIZE"], epochs=parameters["BASE_EPOCHS"], seed=parameters["SEED"]
        )
        tiny_llama.pretrain_base(prepared.catalog["text"], base, recipe)
    processes.wait_for_everyone()
    engine = parameters["ENGINE"]
    if engine == "auto" and processes.num_processes > 1:
        engine = "transformers"  # Unsloth is made for one GPU
    finetuning.finetune(prepared, model, settings, engine, parameters["RESUME"], name)
    processes.wait_for_everyone()  # the main process saves the adapter last
    if processes.is_main_process:
        run = language_models.read_run(prepared.paths, name or model)
        print(f"{run['steps']} steps in {run['seconds'] / 60:.1f} minutes, {run['processes']} process(es)")
        print(f"best validation loss {run['best_validation_loss']:.4f} at step {run['best_step']}")
        print(f"saved to {show(prepared.paths.adapter(name or model))}")
    processes.destroy_process_group()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="as notebook 03's DATASET (default: sample)")
    parser.add_argument("--model", help="as notebook 03's MODEL (default: tiny-llama)")
    parser.add_argument("--profile", default="sample", help="parameter file in notebooks/profiles (default: sample)")
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="one parameter"
    )
    parser.add_argument("--data-dir", default="data", help="where datasets live")
    parser.add_argument("--name", help="of the adapter's folder, where it is not the model's")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    given = {"DATASET": arguments.dataset, "MODEL": arguments.model, "DATA_DIR": arguments.data_dir}
    given = {name: value for name, value in given.items() if value} | dict(arguments.set)
    try:
        parameters = read_parameters(arguments.profile, given)
        check_launcher(os.environ, parameters["METHOD"], torch.cuda.device_count())
        finetune(parameters, parameters["DATA_DIR"], arguments.name)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
