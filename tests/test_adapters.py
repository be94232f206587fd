"""The adapters that come with the course: small, without a path of a machine, ready to generate on your own data."""

import importlib.util
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from gloss_utils import generation, language_models
from gloss_utils.paths import PROJECT_ROOT, read_json

ADAPTERS = sorted((PROJECT_ROOT / "data/adapters").iterdir())
INSTALLED = all(importlib.util.find_spec(name) for name in (language_models.SMOLLM2_PACKAGE, "gguf"))
each_adapter = pytest.mark.parametrize("folder", ADAPTERS, ids=lambda folder: folder.name)


@each_adapter
def test_it_is_small_and_names_no_machine(folder):
    """`save_pretrained` writes the base's absolute path into the adapter's configuration."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 11e6
    texts = "\n".join(path.read_text(encoding="utf-8") for path in files if path.suffix != ".safetensors")
    assert not re.search(r"/(work|home|root|tmp)/", texts)
    assert (
        read_json(folder / "adapter/adapter_config.json")["base_model_name_or_path"]
        == read_json(folder / "run.json")["model"]
    )


@each_adapter
def test_every_parameter_is_there_in_bf16(folder):
    tensors, run = load_file(folder / "adapter/adapter_model.safetensors"), read_json(folder / "run.json")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in tensors.values()) == run["trainable_parameters"]
    assert "data" not in run  # it would refuse a reader's own copy of the data


@pytest.mark.skipif(not INSTALLED, reason=f"SmolLM2: {language_models.SMOLLM2_INSTALL}")
@pytest.mark.slow
def test_a_copied_adapter_writes_without_training(toy):
    """Copied beside one's own data it was refused for its base, which nobody had unpacked, and lacked a tokenizer."""
    shutil.copytree(PROJECT_ROOT / "data/adapters/smollm2-135m-beauty", toy.paths.model(language_models.SMOLLM2))
    model, tokenizer = language_models.load_finetuned(toy.paths, language_models.SMOLLM2)
    strategy = generation.Strategy("short", max_new_tokens=3)
    written = generation.generate(model, tokenizer, toy.splits["test"]["ptext"][:1], strategy)[0]
    assert any(text.startswith("Title:") for text in written.texts)
