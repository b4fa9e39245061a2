"""Our engine "onnx" as a contender of `bench/engine.py`: the same model, exported first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from contenders import Prompts, Run, drive
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from workers.engine.registry import EngineSpec, build


class Onnx:
    """The engine "onnx", step by step, as a worker drives it."""

    name = "penstock, onnx"

    def __init__(self, model: Any, folder: Path, streams: int, precision: str = "fp32") -> None:
        source, export = folder / "source", folder / "export"
        model.save_pretrained(source)
        words = {f"w{token} ": token for token in range(model.config.vocab_size)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0 "))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0 ").save_pretrained(source)
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(export)]
        command += ["-p", precision, "-e", "cpu", "--extra_options", "prune_lm_head=true"]
        subprocess.run(command, check=True, capture_output=True)
        self.engine = build("onnx", EngineSpec(str(export), max_num_seqs=streams))

    def run(self, prompts: Prompts, new: int) -> Run:
        return drive(self.engine, prompts, new)

    def close(self) -> None:
        self.engine.close()
