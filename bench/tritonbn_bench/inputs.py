"""Tensors for a case: random with a mean away from zero, ill-conditioned, or real activations.

Where an activation has a kink, the rounding of its argument z decides which derivative an element
near the kink takes, and no result could be held against another's. There, where |z - kink| is below
16 roundings of z's terms in the arithmetic and one in the dtype (torch rounds between operators),
dy is 0: either derivative then gives the same gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tritonbn import reference

from .cases import Case
from .fusions import PLAIN, Fusion

__all__ = ["TORCH_DTYPES", "Inputs", "digits_activations", "digits_images", "make_inputs"]

TORCH_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp64": torch.float64,
}
_MEMORY_FORMATS = {"nhwc": torch.channels_last, "ndhwc": torch.channels_last_3d}
# where the derivative jumps
_KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0)}
# largest mean of an ill-conditioned input: below fp16's 65504
_LARGEST_MEAN = 1e4


@dataclass(frozen=True)
class Inputs:
    """Operands of one BatchNorm call, and of what follows it.

    Attributes:
        x, dy: shape of the case, its dtype and layout
        gamma, beta, running_mean, running_var: `(C,)`, fp32 (fp64 for fp64 x)
        momentum, eps: torch's defaults
        fusion: what follows
        residual: as x, where the fusion adds one
    """

    x: Tensor
    dy: Tensor
    gamma: Tensor
    beta: Tensor
    running_mean: Tensor
    running_var: Tensor
    momentum: float = 0.1
    eps: float = 1e-5
    fusion: Fusion = PLAIN
    residual: Tensor | None = None

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What gradients are taken for, by the name of the gradient."""
        leaves = {"dx": self.x, "dgamma": self.gamma, "dbeta": self.beta}
        return leaves if self.residual is None else {**leaves, "dresidual": self.residual}


def make_inputs(case: Case, device: str, seed: int = 0) -> Inputs:
    """Operands of a case, the same for the same seed and device.

    `case.data` is one of: "normal", channels of mean 0.5 to 2 and std 0.5 to 2; "mean/std=R";
    "constant", every channel one value; "digits", real activations.

    Raises:
        ValueError: unknown data, or digits in another shape than they have
    """
    random = torch.Generator(device).manual_seed(seed)
    dtype = TORCH_DTYPES[case.dtype]
    wide = torch.float64 if case.dtype == "fp64" else torch.float32

    def uniform(low: float, high: float) -> Tensor:
        values = torch.rand(case.channels, generator=random, device=device, dtype=wide)
        return low + (high - low) * values

    def activation(values: Tensor) -> Tensor:
        if case.layout == "nlc":
            # torch has no memory format of three axes
            return values.to(dtype).movedim(1, -1).contiguous().movedim(-1, 1)
        memory_format = _MEMORY_FORMATS.get(case.layout, torch.contiguous_format)
        return values.to(dtype).contiguous(memory_format=memory_format)

    x = activation(_values(case, device, random))
    dy = activation(torch.randn(case.shape, generator=random, device=device) + 0.1)
    inputs = Inputs(
        x=x,
        dy=dy,
        gamma=uniform(0.5, 1.5),
        beta=uniform(-1.0, 1.0),
        running_mean=uniform(-1.0, 1.0),
        running_var=uniform(0.5, 2.0),
        fusion=case.fused,
    )
    if case.fused.residual:
        values = torch.randn(case.shape, generator=random, device=device)
        inputs = replace(inputs, residual=activation(values))
    if not case.mode.startswith("forward") and case.fused.activation in _KINKS:
        dy.masked_fill_(_near_a_kink(inputs, case.training), 0.0)
    for leaf in inputs.leaves.values():
        leaf.requires_grad_()
    return inputs


def _near_a_kink(inputs: Inputs, training: bool) -> Tensor:
    """Where rounding decides which derivative the activation takes, `(N, C, *S)`, bool."""
    exact = reference.forward(
        inputs.x,
        inputs.gamma,
        inputs.beta,
        inputs.running_mean,
        inputs.running_var,
        training,
        inputs.momentum,
        inputs.eps,
    )
    beta = inputs.beta.double().view(1, -1, *[1] * (inputs.x.dim() - 2))
    z, terms = exact.y, (exact.y - beta).abs() + beta.abs()
    if inputs.residual is not None:
        z, terms = z + inputs.residual.double(), terms + inputs.residual.double().abs()
    eps = torch.finfo(inputs.x.dtype).eps + 16 * torch.finfo(inputs.gamma.dtype).eps
    near = torch.zeros_like(inputs.x, dtype=torch.bool)
    for kink in _KINKS[inputs.fusion.activation]:
        near |= (z - kink).abs() <= eps * (terms + abs(kink))
    return near


def _values(case: Case, device: str, random: torch.Generator) -> Tensor:
    """x before it is rounded to the dtype of the case."""
    if case.data == "digits":
        values = digits_activations(case.channels, case.batch).to(device)
        if values.shape != case.shape:
            raise ValueError(f"expected digits of shape {tuple(values.shape)}, got {case.shape}")
        return values
    per_channel = (1, case.channels, *[1] * len(case.plane))
    sign = 1 - 2 * (torch.arange(case.channels, device=device) % 2).view(per_channel)
    uniform = torch.rand(per_channel, generator=random, device=device)
    if case.data == "constant":
        return (sign * (0.5 + 1.5 * uniform)).expand(case.shape)
    if case.data == "normal":
        noise = torch.randn(case.shape, generator=random, device=device)
        return noise * (0.5 + 1.5 * uniform) + sign * (0.5 + 1.5 * uniform.flip(1))
    name, _, ratio = case.data.partition("=")
    if name != "mean/std":
        raise ValueError(f"expected normal, constant, digits or mean/std=R, got {case.data}")
    # fp64: at a ratio of 1e6 the sum must not be rounded twice
    noise = torch.randn(case.shape, generator=random, device=device, dtype=torch.float64)
    std = min(1.0, _LARGEST_MEAN / float(ratio)) if float(ratio) else 1.0
    return noise * std + sign * (float(ratio) * std)


def digits_images() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: images `(1797, 1, 8, 8)`, fp32 in 0..1, and labels `(1797,)`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    return images, torch.tensor(digits.target)


def digits_activations(channels: int, batch: int) -> Tensor:
    """What reaches the first BatchNorm of the guide's SimpleCNN: `(batch, channels, 8, 8)` fp32.

    Args:
        channels: width of the first convolution
        batch: images taken, from the first on
    """
    from tritonbn.blocks import SimpleCNN

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SimpleCNN(1, widths=(channels,), hidden=8)
    convolution = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        values: Tensor = convolution(digits_images()[0][:batch])
    return values
