"""Where a model's layers go: to one device, or spread over the GPUs of a worker that has several."""

from __future__ import annotations

from typing import Any

import psutil  # type: ignore[import-untyped]
import torch


def device_map(device: torch.device, gpus: int) -> str:
    """What transformers is to do with the layers: all on `device`, or evenly over that many GPUs."""
    if device.type != "cuda" or gpus <= 1:
        return str(device)
    if torch.cuda.device_count() < gpus:
        raise ValueError(f"the worker is given {gpus} GPUs, and CUDA finds {torch.cuda.device_count()} of them")
    return "auto"


def parts_of(model: Any) -> dict[str, Any]:
    """Where transformers has put which part of a model; empty for a model on one device."""
    return dict(getattr(model, "hf_device_map", None) or {})


def is_spread(model: Any) -> bool:
    """Whether its layers lie on several devices."""
    return len(set(parts_of(model).values())) > 1


def check_placed(model: Any) -> None:
    """What does not fit on the GPUs would silently be computed from the CPU's memory, or from disk."""
    places = [str(place) for place in parts_of(model).values()]
    outside = sum(place in ("cpu", "disk") for place in places)
    if outside:
        raise ValueError(f"{outside} of {len(places)} parts of the model do not fit on its GPUs: give it more of them")


def free_memory(model: Any) -> int:
    """Bytes that are free where the model is. Of several GPUs the fullest sets the limit: each has some layers."""
    if model.device.type != "cuda":
        return int(psutil.virtual_memory().available)
    devices = set(parts_of(model).values()) or {model.device}
    return min(int(torch.cuda.mem_get_info(device)[0]) for device in devices) * len(devices)
