"""ResNet with bottlenecks (He et al. 2016, table 1) in plain torch, stride in the 3 x 3
convolution, of any depth and width; with torch's BatchNorm layers, or with ours that hold what
follows them. Both have the same parameters by the same names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

import tritonbn

__all__ = ["ResNet"]

EXPANSION = 4


class ResNet(nn.Module):
    """Logits `(N, classes)` of images `(N, 3, H, W)`.

    Args:
        blocks: bottlenecks in each stage; each stage halves the plane but the first
        width: channels of the stem and of the first stage's 3 x 3 convolutions
        classes: number of logits
        fused: whether BatchNorm layers are ours, with addition and ReLU in them
    """

    def __init__(
        self,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        classes: int = 1000,
        *,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = _norm(width, fused)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages, channels = [], width
        for index, depth in enumerate(blocks):
            inner = width << index
            members = []
            for block in range(depth):
                stride = 2 if index and not block else 1
                members.append(_Bottleneck(channels, inner, stride, fused))
                channels = inner * EXPANSION
            stages.append(nn.Sequential(*members))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        x = self.maxpool(_rectified(self.bn1, self.conv1(images)))
        logits: Tensor = self.head(self.pool(self.stages(x)).flatten(1))
        return logits


class _Bottleneck(nn.Module):
    """`relu(bn3(conv3(...)) + shortcut)`."""

    def __init__(self, channels: int, inner: int, stride: int, fused: bool) -> None:
        super().__init__()
        outer = inner * EXPANSION
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = _norm(inner, fused)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = _norm(inner, fused)
        self.conv3 = nn.Conv2d(inner, outer, 1, bias=False)
        self.bn3 = _norm(outer, fused)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or channels != outer:
            shortcut = nn.Conv2d(channels, outer, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, _norm(outer, fused, None))

    def forward(self, x: Tensor) -> Tensor:
        y = _rectified(self.bn1, self.conv1(x))
        y = _rectified(self.bn2, self.conv2(y))
        return _rectified(self.bn3, self.conv3(y), self.downsample(x))


def _norm(channels: int, fused: bool, activation: str | None = "relu") -> nn.Module:
    return (
        tritonbn.BatchNorm2d(channels, activation=activation) if fused else nn.BatchNorm2d(channels)
    )


def _rectified(norm: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """`relu(norm(x) + residual)`, in the layer or by torch's operators in place."""
    if getattr(norm, "activation", None) is not None:
        fused: Tensor = norm(x) if residual is None else norm(x, residual)
        return fused
    y: Tensor = norm(x)
    if residual is not None:
        y += residual
    return y.relu_()
