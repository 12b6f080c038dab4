"""What `view_of` says of shapes and strides is where the elements really are."""

import pytest
import torch

from tritonbn_kernels.layout import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    channel_view,
    empty_like_in_family,
    view_of,
)


def _arange(*shape: int) -> torch.Tensor:
    size = 1
    for n in shape:
        size *= n
    return torch.arange(size).reshape(shape)


# each reaches another branch of `view_of`
TENSORS = {
    "nchw": (_arange(3, 4, 5, 6), CHANNELS_FIRST),
    "ncl": (_arange(3, 4, 7), CHANNELS_FIRST),
    "ncdhw": (_arange(2, 3, 2, 3, 4), CHANNELS_FIRST),
    "channels_last": (
        _arange(3, 4, 5, 6).contiguous(memory_format=torch.channels_last),
        CHANNELS_LAST,
    ),
    "channels_last_3d": (
        _arange(2, 3, 2, 3, 4).contiguous(memory_format=torch.channels_last_3d),
        CHANNELS_LAST,
    ),
    "nc": (_arange(7, 5), CHANNELS_LAST),
    "nc-column-major": (_arange(5, 7).t(), CHANNELS_FIRST),
    "nlc-given-as-ncl": (_arange(3, 7, 4).transpose(1, 2), CHANNELS_LAST),
    "channel-slice-of-nchw": (_arange(3, 8, 5, 6)[:, 2:5], CHANNELS_FIRST),
    "channel-slice-of-channels-last": (
        _arange(3, 8, 5, 6).contiguous(memory_format=torch.channels_last)[:, 2:5],
        CHANNELS_LAST,
    ),
    "batch-slice": (_arange(6, 4, 5, 6)[::2], CHANNELS_FIRST),
    "expanded-batch": (_arange(1, 4, 5, 6).expand(3, 4, 5, 6), CHANNELS_FIRST),
    "one-channel": (_arange(3, 1, 5, 6), CHANNELS_FIRST),
    "one-image-channels-last": (
        _arange(1, 4, 5, 6).contiguous(memory_format=torch.channels_last),
        CHANNELS_LAST,
    ),
    "one-pixel": (_arange(3, 4, 1, 1), CHANNELS_LAST),
    "one-column": (_arange(9, 1), CHANNELS_FIRST),
}


@pytest.mark.parametrize("name", TENSORS)
def test_view_finds_every_element(name: str) -> None:
    x, family = TENSORS[name]
    view = channel_view(x)
    assert view is not None
    assert view.family == family
    assert view.n_channels == x.shape[1]
    assert view.count == x.numel() // x.shape[1]
    base = x.as_strided((x.untyped_storage().nbytes() // 8 - x.storage_offset(),), (1,))
    for c in range(view.n_channels):
        found = {
            int(base[o * view.stride_outer + c * view.stride_channel + i])
            for o in range(view.n_outer)
            for i in range(view.n_inner)
        }
        assert found == set(x[:, c].flatten().tolist())


# strides that neither family can express
EXOTIC = {
    "strided-plane": _arange(3, 4, 5, 12)[..., ::2],
    "permuted-plane": _arange(3, 4, 5, 6).transpose(2, 3),
    "cropped-plane": _arange(3, 4, 5, 6)[:, :, :, 1:5],
    "height-between": _arange(3, 5, 4, 6).transpose(1, 2),
    "strided-channels": _arange(7, 10)[:, ::2],
    "cropped-channels-last": _arange(3, 4, 5, 6).contiguous(memory_format=torch.channels_last)[
        :, :, :3
    ],
}


@pytest.mark.parametrize("name", EXOTIC)
def test_exotic_views_are_refused(name: str) -> None:
    assert channel_view(EXOTIC[name]) is None


@pytest.mark.parametrize("name", [*TENSORS, *EXOTIC])
def test_outputs_have_a_family_and_dense_inputs_keep_their_strides(name: str) -> None:
    x = TENSORS[name][0] if name in TENSORS else EXOTIC[name]
    y = empty_like_in_family(x)
    assert channel_view(y) is not None
    assert y.shape == x.shape
    if name in TENSORS and x.numel() == x.untyped_storage().nbytes() // 8 and not name == "nc":
        assert y.stride() == x.stride()


@pytest.mark.parametrize(
    ("shape", "strides", "limit", "expected"),
    [
        pytest.param((2, 4, 8, 8), (256, 64, 8, 1), 8, 8, id="even-planes"),
        pytest.param((2, 4, 14, 14), (784, 196, 14, 1), 8, 4, id="planes-of-196"),
        pytest.param((2, 4, 7, 7), (196, 49, 7, 1), 8, 1, id="odd-planes"),
        pytest.param((2, 4, 8, 8), (260, 65, 8, 1), 8, 1, id="odd-channel-stride"),
        pytest.param((2, 1, 8, 8), (64, 99, 8, 1), 8, 8, id="stride-of-a-single-channel"),
        pytest.param((9, 64), (64, 1), 8, 8, id="rows-of-64"),
        pytest.param((9, 6), (6, 1), 8, 2, id="rows-of-6"),
        pytest.param((9, 64), (65, 1), 8, 1, id="rows-65-apart"),
    ],
)
def test_vector_divides_every_run(
    shape: tuple[int, ...], strides: tuple[int, ...], limit: int, expected: int
) -> None:
    view = view_of(shape, strides)
    assert view is not None
    assert view.vector(limit) == expected


def test_extent_reaches_the_last_element() -> None:
    x = _arange(3, 8, 5, 6)[:, 2:5]
    view = channel_view(x)
    assert view is not None
    last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    assert view.extent == last + 1
