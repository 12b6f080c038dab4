"""What a measurement must say about the machine, and where it runs: GPU or interpreter."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["KEY", "choose_device", "collect", "device_name", "other_plans", "same_machine"]

Environment = dict[str, str | int | float | bool | None]

# results of two runs may stand in one table only if these agree
KEY = ("device", "gpu", "driver", "torch", "cudnn", "triton", "python", "commit")

# variables of ours that change which kernels run, or how they are launched
PLANS = ("plan", "plan_file", "reserve_sms", "plain_launch")


def choose_device(wanted: str = "auto") -> str:
    """The device that kernels will run on: "cuda", or "cpu" by Triton's interpreter.

    Call it before anything imports triton: without a GPU it sets TRITON_INTERPRET=1, which is read
    when a kernel is decorated, and mends the interpreter.

    Args:
        wanted: "cuda", "cpu", or "auto" for a GPU if there is one

    Raises:
        RuntimeError: no GPU is visible and one was asked for, or triton came too early
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("no CUDA device is visible; drop --device cuda to use the interpreter")
    interpret = os.environ.get("TRITON_INTERPRET") == "1"
    if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available() and not interpret):
        if interpret:
            raise RuntimeError("TRITON_INTERPRET=1 is set; unset it to measure a GPU")
        return "cuda"
    if not interpret and "tritonbn_kernels" in sys.modules:
        raise RuntimeError("kernels are loaded already; set TRITON_INTERPRET=1 before the start")
    os.environ["TRITON_INTERPRET"] = "1"
    from .emulated import mend_interpreter

    mend_interpreter()
    return "cpu"


def device_name(environment: Environment) -> str:
    """Where it ran, for a title that begins with the name of what ran."""
    if environment.get("device") == "cuda":
        return f"on {environment.get('gpu') or 'an unknown GPU'}"
    # without it, torch's own kernels ran on the CPU
    interpreted = environment.get("triton_interpret") == "1"
    return "without a GPU, in Triton's interpreter" if interpreted else "without a GPU"


def other_plans(first: Environment, second: Environment) -> list[str]:
    """Names of the entries on plans and launches in which two environments differ."""
    return [name for name in PLANS if first.get(name) != second.get(name)]


def same_machine(first: Environment, second: Environment) -> list[str]:
    """Names of the KEY entries in which two environments differ."""
    return [name for name in KEY if first.get(name) != second.get(name)]


def collect(device: str, command: str = "") -> Environment:
    """What a report and a bug report need to know of the machine, by name.

    Args:
        device: "cuda" or "cpu"
        command: the command line that measures, if any

    Returns:
        plain values; None where something does not apply or could not be found
    """
    import torch

    found: Environment = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "device": device,
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "tritonbn": _version("tritonbn"),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cudnn": None,
        "gpu": None,
        "driver": None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "triton_interpret": os.environ.get("TRITON_INTERPRET"),
        "triton_fp_fusion": os.environ.get("TRITON_DEFAULT_FP_FUSION"),
        "plan": os.environ.get("TRITONBN_PLAN") or None,
        "plan_file": _plan_file(),
        "reserve_sms": os.environ.get("TRITONBN_RESERVE_SMS") or None,
        "plain_launch": os.environ.get("TRITONBN_PLAIN_LAUNCH") or None,
    }
    if torch.cuda.is_available():
        found.update(_gpu())
    return found


def _plan_file() -> str | None:
    """What the plan file in use is, or why none can be used."""
    from tritonbn_kernels.plan_file import in_use

    try:
        plans = in_use()
    except ValueError as error:
        return f"not usable: {error}"
    return None if plans is None else str(plans)


def _gpu() -> Environment:
    import torch

    cudnn: Any = torch.backends.cudnn
    properties = torch.cuda.get_device_properties()
    smi = _nvidia_smi("driver_version", "power.limit", "clocks.max.sm", "ecc.mode.current")
    return {
        "cudnn": str(cudnn.version()),
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "sm_count": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "driver": smi[0],
        "power_limit_w": smi[1],
        "max_sm_clock_mhz": smi[2],
        "ecc": smi[3],
    }


def _nvidia_smi(*fields: str) -> list[str | None]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    answer = _output(command)
    if answer is None:
        return [None] * len(fields)
    return [value.strip() for value in answer.splitlines()[0].split(",")]


def _git(*arguments: str) -> str | None:
    return _output(["git", "-C", str(Path(__file__).parent), *arguments])


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None
