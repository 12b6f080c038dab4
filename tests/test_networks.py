"""The layers of the networks, by facts published of the networks themselves."""

import subprocess
import sys
from collections import Counter
from math import prod

import pytest

from tritonbn_bench import cases
from tritonbn_bench.fusions import FUSIONS
from tritonbn_bench.networks import EXTREMES, NETWORKS, Layer

# (BatchNorm layers, their parameters, outputs of them all for one sample in millions): counts by
# the depth in the name; parameters as frameworks list them (Keras counts as many non-trainable
# ones); outputs added up by hand for ResNet-50, elsewhere a lock on what the generator says
FACTS = {
    "resnet18": (20, 9_600, 2.484),
    "resnet50": (53, 53_120, 11.114),
    "resnet101": (104, 105_344, 16.232),
    "mobilenet_v2": (52, 34_112, 6.678),
    "efficientnet_b0": (49, 42_016, 6.738),
    "densenet121": (121, 83_648, 15.667),
    "unet": (18, 11_776, 127.926),
    "resnet3d18": (20, 9_600, 21.325),
    "mlp": (7, 21_080, 0.011),
}
of_every_network = pytest.mark.parametrize("key", list(NETWORKS))


@of_every_network
def test_layers_agree_with_what_is_published(key: str) -> None:
    layers = NETWORKS[key].layers
    outputs = sum(layer.channels * prod(layer.plane) * layer.count for layer in layers)
    parameters = sum(2 * layer.channels * layer.count for layer in layers)
    found = (sum(layer.count for layer in layers), parameters, round(outputs / 1e6, 3))
    assert found == FACTS[key]


@of_every_network
def test_a_shape_is_listed_once_with_axes_of_the_input(key: str) -> None:
    network = NETWORKS[key]
    shapes = [(layer.channels, layer.plane) for layer in network.layers]
    assert len(shapes) == len(set(shapes)) > 0
    for layer in network.layers:
        assert len(layer.plane) == len(network.input_size)
        assert all(
            size <= whole for size, whole in zip(layer.plane, network.input_size, strict=True)
        )
        assert layer.names and layer.count > 0


@of_every_network
def test_names_tell_as_many_layers_as_are_counted(key: str) -> None:
    names = [name for layer in NETWORKS[key].layers for name in layer.names.split(", ")]
    # no two shapes claim one name
    assert len(names) == len(set(names))
    for layer in NETWORKS[key].layers:
        assert len(layer.names.split(", ")) <= layer.count


def test_resnet50_is_written_as_in_its_table() -> None:
    assert cases.RESNET50 == NETWORKS["resnet50"].layers
    relu = (("relu", 7),)
    assert Layer("layer2.1-3.bn1, layer2.*.bn2", 128, (28, 28), 7, relu) in cases.RESNET50
    # six blocks take the shortcut before their ReLU, one shortcut has a BatchNorm of its own
    added = (("add_relu", 6), ("none", 1))
    name = "layer3.*.bn3, layer3.0.downsample.1"
    assert Layer(name, 1024, (14, 14), 7, added) in cases.RESNET50


# BatchNorms by what follows them: ResNets by stages x blocks, MobileNetV2 with its ten shortcuts
FOLLOWED = {
    "resnet18": {"relu": 9, "add_relu": 8, "none": 3},
    "resnet50": {"relu": 33, "add_relu": 16, "none": 4},
    "resnet101": {"relu": 67, "add_relu": 33, "none": 4},
    "mobilenet_v2": {"relu6": 35, "add": 10, "none": 7},
    "efficientnet_b0": {"silu": 33, "none": 16},
    "densenet121": {"relu": 121},
    "unet": {"relu": 18},
    "resnet3d18": {"relu": 9, "add_relu": 8, "none": 3},
    "mlp": {"sigmoid": 3, "relu": 4},
}


@of_every_network
def test_what_follows_each_layer_is_counted(key: str) -> None:
    counts: Counter[str] = Counter()
    for layer in NETWORKS[key].layers:
        assert sum(count for _, count in layer.followed) == layer.count
        counts.update(dict(layer.followed))
    assert counts == FOLLOWED[key]
    assert set(counts) <= set(FUSIONS)


def test_half_of_resnet50_is_followed_by_an_addition_and_relu() -> None:
    sizes: Counter[str] = Counter()
    for layer in cases.RESNET50:
        for fusion, count in layer.followed:
            sizes[fusion] += count * layer.channels * prod(layer.plane)
    shares = {name: round(100 * size / sizes.total()) for name, size in sizes.items()}
    assert shares == {"relu": 37, "add_relu": 50, "none": 14}


def test_planes_of_the_last_layers() -> None:
    last = {key: network.layers[-1] for key, network in NETWORKS.items()}
    assert (last["densenet121"].channels, last["densenet121"].plane) == (1024, (7, 7))
    assert (last["efficientnet_b0"].channels, last["efficientnet_b0"].plane) == (1280, (7, 7))
    assert (last["resnet3d18"].channels, last["resnet3d18"].plane) == (512, (2, 7, 7))
    assert (last["unet"].channels, last["unet"].plane) == (1024, (32, 32))


def test_extremes_reach_every_edge() -> None:
    shapes = EXTREMES.values()
    assert {1, 3, 65_536} <= {channels for _, channels, _ in shapes}
    assert {1, 65_536, 880_802} <= {batch for batch, _, _ in shapes}
    large = [plane for n, c, plane in shapes if n * c * prod(plane) > 2**31]
    assert {len(plane) for plane in large} == {0, 2, 3}


def test_networks_import_without_torch() -> None:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import tritonbn_bench.networks\n"
        "print(sorted({'torch', 'triton', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
