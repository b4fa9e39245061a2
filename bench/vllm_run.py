"""The other side of `contenders.Vllm`: runs in vLLM's own environment, one JSON object per line in and out.

python vllm_run.py MODEL STREAMS KV_TOKENS
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.sampling_params import RequestOutputKind


def run(engine: Any, prompts: list[list[int]], new: int) -> dict[str, Any]:
    """`new` greedy tokens for each prompt."""
    begin = time.perf_counter()
    params = SamplingParams(
        temperature=0.0, max_tokens=new, min_tokens=new, ignore_eos=True, detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )  # fmt: skip
    for number, prompt in enumerate(prompts):
        engine.add_request(f"{begin}-{number}", {"prompt_token_ids": prompt}, params)
    first: dict[str, float] = {}
    tokens = 0
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter() - begin
        for output in outputs:
            first.setdefault(output.request_id, now)
            tokens += sum(len(each.token_ids) for each in output.outputs)
    return {"seconds": time.perf_counter() - begin, "first": list(first.values()), "tokens": tokens}


def main() -> None:
    model, streams, kv_tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=model,
            skip_tokenizer_init=True,
            dtype="float32",
            max_num_seqs=streams,
            max_model_len=4096,
            max_num_batched_tokens=max(4096, streams),
        )
    )
    print(json.dumps({"ready": True, "kv_tokens": kv_tokens}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(run(engine, asked["prompts"], asked["new"])), flush=True)


if __name__ == "__main__":
    main()
