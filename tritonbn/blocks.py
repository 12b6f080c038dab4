"""The blocks of the BatchNorm guide, built with our layers, which carry the activation.

Convolutions in front of BatchNorm carry no bias (beta absorbs it), and dropout comes after the
activation.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from tritonbn_kernels.activation_names import activation_of

from ._following import Activation, activation_layer
from .modules import BatchNorm1d, BatchNorm2d

__all__ = ["ConvBNAct", "SimpleCNN"]


class ConvBNAct(nn.Module):
    """Convolution, BatchNorm, activation, and dropout if asked for: `(N, C, H, W)` to the same.

    The convolution has no bias. With the defaults height and width are kept.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the square kernel.
        stride: step of the convolution.
        padding: zeros added on each side; half of `kernel_size` if None.
        activation: a name or a pair of name and parameter, as `batch_norm` takes it.
        dropout: probability of a zeroed element after the activation; 0 adds no layer.
        fused: the BatchNorm layer applies the activation, else a layer of torch's behind it;
            parameters and state_dict are the same.

    Raises:
        TypeError, ValueError: there is no such activation, or `dropout` is no probability.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        activation: Activation = "relu",
        dropout: float = 0.0,
        fused: bool = True,
    ) -> None:
        super().__init__()
        following = activation_of(activation)
        if padding is None:
            padding = kernel_size // 2
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False
        )
        self.norm = BatchNorm2d(out_channels, activation=activation if fused else None)
        self.activation = None if fused else activation_layer(following)
        self.dropout = nn.Dropout(dropout) if dropout != 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return dropout(activation(norm(conv(x)))): `(N, out_channels, H', W')`."""
        y: Tensor = self.norm(self.conv(x))
        if self.activation is not None:
            y = self.activation(y)
        y = self.dropout(y)
        return y


class SimpleCNN(nn.Module):
    """The guide's image classifier: `(N, in_channels, H, W)` to logits `(N, num_classes)`.

    A `ConvBNAct` per width with max pooling between them, global average pooling, and a head of
    Linear, BatchNorm1d, ReLU, Linear. The bias of the first Linear is redundant in front of
    BatchNorm and kept because the guide has it.

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        widths: output channels of each convolution; each but the last halves height and width.
        hidden: features between the two Linear layers.
        fused: the BatchNorm layers apply the ReLUs, else layers of torch's behind them; parameters
            and state_dict are the same.

    Raises:
        ValueError: `widths` is empty.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        *,
        widths: Sequence[int] = (64, 128, 256),
        hidden: int = 128,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("expected at least one width, got none")
        layers: list[nn.Module] = []
        for index, width in enumerate(widths):
            if index:
                layers.append(nn.MaxPool2d(2))
            layers.append(ConvBNAct(in_channels, width, fused=fused))
            in_channels = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_channels, hidden),
            BatchNorm1d(hidden, activation="relu" if fused else None),
            # in either case the last layer has the same number, and with it the same state_dict
            nn.Identity() if fused else nn.ReLU(inplace=True),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `(N, num_classes)` of images `x`."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
