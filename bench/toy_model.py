"""The random model that all systems serve, with a tokenizer whose prompts have exactly the length that was asked for.

Every token is a word, w0 to w4095; the model has no token that ends an answer, so every answer has the length asked
for. It measures what serving costs beside a small model, and says nothing of language.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from bench.contenders import SHAPES, random_model

NAME = "llama-s"
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def save(folder: Path) -> Path:
    """The model as transformers 5 and vLLM read it."""
    path = folder / NAME
    logs: Any = logging  # untyped
    logs.disable_progress_bar()
    model = random_model(NAME)
    model.save_pretrained(path)
    words = {f"w{token}": token for token in range(SHAPES[NAME][-1])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast_class: Any = PreTrainedTokenizerFast  # untyped
    fast = fast_class(tokenizer_object=tokenizer, model_max_length=4096, chat_template=TEMPLATE)
    fast.save_pretrained(path)
    return path


def save_for_transformers_4(path: Path) -> Path:
    """The same weights with the names of transformers 4, in a folder beside it; FastChat runs with that one."""
    other = path.with_name(f"{NAME}-4") / NAME  # FastChat names a model after its folder
    shutil.copytree(path, other)
    config = json.loads((path / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    (other / "config.json").write_text(json.dumps(config))
    names = json.loads((path / "tokenizer_config.json").read_text())
    kept = {name: names[name] for name in ("model_max_length", "clean_up_tokenization_spaces") if name in names}
    (other / "tokenizer_config.json").write_text(
        json.dumps({**kept, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE})
    )
    return other
