"""The BatchNorm layers of well-known networks, and shapes at the edges. Pure Python.

Every network is generated from its architecture's own parameters: stages, widths, expansion,
growth. A `Layer` names its BatchNorms by stage, block and part, as in `layer2.1-3.bn1`, and says
what follows them in the network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .fusions import NONE

__all__ = ["EXTREMES", "NETWORKS", "RESNET50", "Layer", "Network"]

Plane = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """The layers of one network that share a shape.

    Attributes:
        names: what the layers are called in the network
        channels: C
        plane: sizes of the axes after the channel, at the input size of the network
        count: how many layers have this shape
        followed: (key of `fusions.FUSIONS`, how many of the layers), all of them
    """

    names: str
    channels: int
    plane: Plane
    count: int
    followed: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Network:
    """A network as BatchNorm sees it.

    Attributes:
        name: as written in its paper
        origin: paper and table
        input_size: sizes of the axes after the channel of one sample, () for (N, C)
        layers: its BatchNorm layers, by shape, in order of appearance
    """

    name: str
    origin: str
    input_size: Plane
    layers: tuple[Layer, ...]


class _Norm(NamedTuple):
    """One BatchNorm: part of a block of a stage; block is None where the stage has no blocks.

    then: key of `fusions.FUSIONS`, what follows it before anything else reads it.
    """

    stage: str
    block: int | None
    part: str
    channels: int
    plane: Plane
    then: str


def _grouped(norms: Iterator[_Norm]) -> tuple[Layer, ...]:
    """One `Layer` for each shape."""
    every = list(norms)
    depth: dict[str, int] = {}
    for norm in every:
        depth[norm.stage] = max(depth.get(norm.stage, 0), (norm.block or 0) + 1)
    shapes: dict[tuple[int, Plane], list[_Norm]] = {}
    for norm in every:
        shapes.setdefault((norm.channels, norm.plane), []).append(norm)
    return tuple(
        Layer(
            _names(members, depth),
            channels,
            plane,
            len(members),
            tuple(Counter(norm.then for norm in members).items()),
        )
        for (channels, plane), members in shapes.items()
    )


def _names(members: Sequence[_Norm], depth: dict[str, int]) -> str:
    """`stage.blocks.part` of BatchNorms of one shape, blocks as `*`, `0` or `1-3`."""
    blocks: dict[tuple[str, str], list[int | None]] = {}
    for norm in members:
        blocks.setdefault((norm.stage, norm.part), []).append(norm.block)
    stages = list(dict.fromkeys(norm.stage for norm in members))
    labels = []
    for stage, part in sorted(blocks, key=lambda label: (stages.index(label[0]), label[1])):
        found = blocks[stage, part]
        first, last = found[0], found[-1]
        if first is None:
            middle = ""
        elif len(found) == depth[stage] > 1:
            middle = ".*"
        else:
            middle = f".{first}" if first == last else f".{first}-{last}"
        labels.append(f"{stage}{middle}.{part}".strip("."))
    return ", ".join(labels)


def _down(plane: Plane, stride: int | Sequence[int] = 2) -> Plane:
    """The plane after a padded convolution or pooling."""
    strides = [stride] * len(plane) if isinstance(stride, int) else stride
    return tuple(-(-size // step) for size, step in zip(plane, strides, strict=True))


def _resnet(
    blocks: Sequence[int], expansion: int, plane: Plane, *, pooled: bool = True
) -> Iterator[_Norm]:
    """ResNet with the stride in the 3 x 3 convolution; `plane` is that of the first BatchNorm.

    Figures 2 and 5 of the paper: ReLU behind all but a block's last BatchNorm, whose result takes
    the shortcut first; the shortcut's own BatchNorm is that residual.
    """
    yield _Norm("bn1", None, "", 64, plane, "relu")
    if pooled:
        plane = _down(plane)
    channels = 64
    for index, depth in enumerate(blocks):
        stage, width = f"layer{index + 1}", 64 << index
        for block in range(depth):
            before, stride = plane, 2 if index and not block else 1
            plane = _down(plane, stride)
            if expansion == 1:
                yield _Norm(stage, block, "bn1", width, plane, "relu")
                yield _Norm(stage, block, "bn2", width, plane, "add_relu")
            else:
                yield _Norm(stage, block, "bn1", width, before, "relu")
                yield _Norm(stage, block, "bn2", width, plane, "relu")
                yield _Norm(stage, block, "bn3", width * expansion, plane, "add_relu")
            if stride > 1 or channels != width * expansion:
                channels = width * expansion
                yield _Norm(stage, block, "downsample.1", channels, plane, NONE)


# (expansion, channels, blocks, stride) of each stage of inverted residuals
_MOBILENET_V2 = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
_EFFICIENTNET_B0 = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 40, 2, 2), (6, 80, 3, 2)),
    *((6, 112, 3, 1), (6, 192, 4, 2), (6, 320, 1, 1)),
)


def _inverted_residuals(
    stages: Sequence[tuple[int, int, int, int]], plane: Plane, activation: str, shortcut: str
) -> Iterator[_Norm]:
    """A stem of 32 channels, blocks of expansion, depthwise and projection, a head of 1280.

    The projection is linear; where a block keeps its shape, `shortcut` follows it.
    """
    plane = _down(plane)
    yield _Norm("stem", None, "", 32, plane, activation)
    channels = 32
    for index, (expansion, width, depth, stride) in enumerate(stages):
        for block in range(depth):
            stage, hidden = f"stage{index + 1}", channels * expansion
            if expansion > 1:
                yield _Norm(stage, block, "expand", hidden, plane, activation)
            plane = _down(plane, 1 if block else stride)
            yield _Norm(stage, block, "depthwise", hidden, plane, activation)
            yield _Norm(stage, block, "project", width, plane, shortcut if block else NONE)
            channels = width
    yield _Norm("head", None, "", 1280, plane, activation)


def _densenet(blocks: Sequence[int], growth: int, channels: int, plane: Plane) -> Iterator[_Norm]:
    """DenseNet-BC: a bottleneck of four growths in every layer, halving transitions; ReLU behind
    every BatchNorm (section 3)."""
    plane = _down(plane)
    yield _Norm("norm0", None, "", channels, plane, "relu")
    plane = _down(plane)
    for index, depth in enumerate(blocks):
        for block in range(depth):
            stage = f"denseblock{index + 1}"
            yield _Norm(stage, block, "norm1", channels, plane, "relu")
            yield _Norm(stage, block, "norm2", 4 * growth, plane, "relu")
            channels += growth
        if index + 1 < len(blocks):
            yield _Norm(f"transition{index + 1}", None, "norm", channels, plane, "relu")
            channels, plane = channels // 2, _down(plane)
    yield _Norm("norm5", None, "", channels, plane, "relu")


def _unet(width: int, levels: int, plane: Plane) -> Iterator[_Norm]:
    """U-Net with padded convolutions, BatchNorm and ReLU after each of the two of a level."""
    planes = [plane]
    for _ in range(levels - 1):
        planes.append(_down(planes[-1]))
    down = [("down", level) for level in range(levels)]
    up = [("up", level) for level in reversed(range(levels - 1))]
    for way, level in (*down, *up):
        for part in ("bn1", "bn2"):
            yield _Norm(f"{way}{level + 1}", None, part, width << level, planes[level], "relu")


def _perceptron(layers: Sequence[tuple[int, str]]) -> Iterator[_Norm]:
    for index, (width, activation) in enumerate(layers):
        yield _Norm("hidden", index, "bn", width, (), activation)


_RECTIFIED = ((1024, "relu"), (1024, "relu"), (4096, "relu"), (4096, "relu"))
_HE = "He et al. 2016, table 1"
_IMAGE = (224, 224)
_HALF = _down(_IMAGE)
NETWORKS = {
    "resnet18": Network("ResNet-18", _HE, _IMAGE, _grouped(_resnet((2, 2, 2, 2), 1, _HALF))),
    "resnet50": Network("ResNet-50", _HE, _IMAGE, _grouped(_resnet((3, 4, 6, 3), 4, _HALF))),
    "resnet101": Network("ResNet-101", _HE, _IMAGE, _grouped(_resnet((3, 4, 23, 3), 4, _HALF))),
    "mobilenet_v2": Network(
        "MobileNetV2",
        "Sandler et al. 2018, table 2",
        _IMAGE,
        _grouped(_inverted_residuals(_MOBILENET_V2, _IMAGE, "relu6", "add")),
    ),
    "efficientnet_b0": Network(
        "EfficientNet-B0",
        "Tan and Le 2019, table 1",
        _IMAGE,
        # stochastic depth stands between the last BatchNorm of a block and its addition
        _grouped(_inverted_residuals(_EFFICIENTNET_B0, _IMAGE, "silu", NONE)),
    ),
    "densenet121": Network(
        "DenseNet-121",
        "Huang et al. 2017, table 1, growth 32",
        _IMAGE,
        _grouped(_densenet((6, 12, 24, 16), 32, 64, _IMAGE)),
    ),
    "unet": Network(
        "U-Net",
        "Ronneberger et al. 2015, figure 1, convolutions padded and followed by BatchNorm",
        (512, 512),
        _grouped(_unet(64, 5, (512, 512))),
    ),
    # 16 frames of 112 x 112; the stem leaves the frames as they are and nothing is pooled
    "resnet3d18": Network(
        "ResNet3D-18",
        "Tran et al. 2018, table 1, R3D with downsampling shortcuts",
        (16, 112, 112),
        _grouped(_resnet((2, 2, 2, 2), 1, _down((16, 112, 112), (1, 2, 2)), pooled=False)),
    ),
    "mlp": Network(
        "MLP",
        "Ioffe and Szegedy 2015, section 4.1 (three of 100); two of 1024; the two of 4096 of VGG",
        (),
        # sigmoids in the first three, as that section has them
        _grouped(_perceptron((*[(100, "sigmoid")] * 3, *_RECTIFIED))),
    ),
}
RESNET50 = NETWORKS["resnet50"].layers

# (N, C, plane) at the edges of what is allowed, by what is extreme about them
EXTREMES: dict[str, tuple[int, int, Plane]] = {
    "one value per channel": (1, 64, ()),
    "one channel, one vector": (8, 1, ()),
    "one channel, long": (880_802, 1, ()),
    "one channel, large planes": (16, 1, (1024, 1024)),
    "three channels, images": (256, 3, (224, 224)),
    "three channels, volumes": (2, 3, (128, 128, 128)),
    "three channels, vectors": (65_536, 3, ()),
    "65,536 channels, vectors": (32, 65_536, ()),
    "65,536 channels, one sample": (1, 65_536, (4, 4)),
    "one image": (1, 64, (512, 512)),
    "65,536 samples": (65_536, 64, ()),
    "880,802 samples": (880_802, 32, ()),
    "880,802 samples, odd channels": (880_802, 35, ()),
    "odd channels and planes": (64, 35, (9, 7)),
    "beyond 2^31 elements": (512, 256, (224, 224)),
    "beyond 2^31 elements, 7 x 7": (24_576, 2048, (7, 7)),
    "beyond 2^31 elements, volumes": (8, 64, (128, 192, 192)),
    "beyond 2^31 elements, vectors": (1_048_577, 2048, ()),
}
