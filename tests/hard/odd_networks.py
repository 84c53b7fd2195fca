"""Small networks with one unusual layer or wiring each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE, ROWS, TOKENS = (4, 8, 8), (7, 4), (5,)
VOCABULARY = 10
Forward = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Odd:
    """Layers by name, how they are called, and the shape of an image."""

    layers: Callable[[], dict[str, nn.Module | nn.Parameter]]
    forward: Forward
    shape: tuple[int, ...] = IMAGE
    is_training: bool = False


class Network(nn.Module):
    """Its layers, and a linear head behind the mean over space."""

    def __init__(self, odd: Odd) -> None:
        super().__init__()
        for name, layer in odd.layers().items():
            setattr(self, name, layer)
        self._odd = odd

    def forward(self, x: Tensor) -> Tensor:
        return self._odd.forward(self, x)


def head(model: nn.Module, x: Tensor) -> Tensor:
    return model.head(x.flatten(2).mean(2))


def one(layer: Callable[[], nn.Module], shape: tuple[int, ...] = IMAGE, norm: type | None = None) -> Odd:
    """A layer, a norm where asked for, a rectifier and the head."""
    channels = layer().out_channels

    def layers() -> dict[str, nn.Module | nn.Parameter]:
        norms = {} if norm is None else {"norm": norm(channels)}
        return {"conv": layer(), **norms, "head": nn.Linear(channels, 3)}

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        x = model.conv(x)
        return head(model, F.relu(x if norm is None else model.norm(x)))

    return Odd(layers, forward, shape)


def plain(forward: Forward, *, is_training: bool = False, **more: Callable[[], nn.Module | nn.Parameter]) -> Odd:
    """Two 3 x 3 convolutions of 4 channels, a norm and a head, wired in some way."""

    def layers() -> dict[str, nn.Module | nn.Parameter]:
        own = {"a": nn.Conv2d(4, 4, 3, padding=1), "norm": nn.BatchNorm2d(4), "head": nn.Linear(4, 3)}
        return {**own, **{name: make() for name, make in more.items()}}

    return Odd(layers, forward, is_training=is_training)


def parameter(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.randn(shape) / 3)


def tabled(forward: Forward) -> Odd:
    """A convolution by its function, and a matrix."""
    return Odd(
        lambda: {"kernel": parameter(8, 4, 3, 3)(), "table": parameter(8, 6)(), "head": nn.Linear(6, 3)}, forward
    )


def _pooled(model: nn.Module, x: Tensor) -> Tensor:
    return F.relu(F.conv2d(x, model.kernel)).mean((2, 3))


def _tied() -> dict[str, nn.Module | nn.Parameter]:
    first, second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    second.weight = first.weight
    return {"first": first, "second": second, "head": nn.Linear(4, 3)}


def _tied_embedding() -> dict[str, nn.Module | nn.Parameter]:
    table, last = nn.Embedding(VOCABULARY, 6), nn.Linear(6, VOCABULARY)
    table.weight = last.weight
    return {"head": last, "table": table}


def _dynamic(model: nn.Module, x: Tensor) -> Tensor:
    gates = model.gate(x.mean((2, 3)))[:, :, None, None, None]
    kernels = (gates * model.conv.weight[None].detach()).reshape(-1, 4, 3, 3)
    y = F.conv2d(x.reshape(1, -1, 8, 8), kernels, groups=x.shape[0])
    return head(model, y.reshape(x.shape[0], 4, 6, 6))


def _cells(model: nn.Module, x: Tensor) -> Tensor:
    state = x.new_zeros(x.shape[0], 6)
    for step in range(3):
        state = model.cell(x[:, step], state)
    return model.head(state)


def _standardised(model: nn.Module, x: Tensor) -> Tensor:
    weight = model.a.weight
    return head(model, F.conv2d(x, (weight - weight.mean()) / weight.std(), model.a.bias))


NETWORKS: dict[str, Odd] = {
    "grouped convolution": one(lambda: nn.Conv2d(4, 8, 3, groups=2)),
    "depthwise convolution": one(lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), norm=nn.BatchNorm2d),
    "dilated convolution": one(lambda: nn.Conv2d(4, 8, 3, dilation=2), norm=nn.BatchNorm2d),
    "padding same": one(lambda: nn.Conv2d(4, 8, 3, padding="same")),
    "reflected padding": one(lambda: nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect")),
    "circular padding": one(lambda: nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular")),
    "transposed convolution": one(lambda: nn.ConvTranspose2d(4, 8, 3, 2, output_padding=1), norm=nn.BatchNorm2d),
    "grouped transposed convolution": one(lambda: nn.ConvTranspose2d(4, 8, 3, groups=2), norm=nn.BatchNorm2d),
    "depthwise transposed convolution": one(lambda: nn.ConvTranspose2d(4, 4, 3, groups=4), norm=nn.BatchNorm2d),
    "convolution over one axis": one(lambda: nn.Conv1d(4, 8, 3, groups=2), (4, 16), nn.BatchNorm1d),
    "transposed convolution over one axis": one(lambda: nn.ConvTranspose1d(4, 8, 3, groups=2), (4, 16)),
    "convolution over three axes": one(lambda: nn.Conv3d(4, 8, 3), (4, 4, 5, 5), nn.BatchNorm3d),
    "grouped convolution over three axes": one(lambda: nn.Conv3d(4, 8, 3, groups=2), (4, 4, 5, 5)),
    "transposed convolution over three axes": one(lambda: nn.ConvTranspose3d(4, 8, 3), (4, 3, 4, 4)),
    "a module called twice": plain(lambda m, x: head(m, m.a(F.relu(m.a(x))))),
    "shared batch norm": plain(lambda m, x: head(m, m.norm(m.a(F.relu(m.norm(x)))))),
    "a layer and its norm called twice": plain(lambda m, x: head(m, m.norm(m.a(F.relu(m.norm(m.a(x))))))),
    "batch norm before a convolution": plain(lambda m, x: head(m, m.a(m.norm(x)))),
    "batch norm behind a rectifier": plain(lambda m, x: head(m, m.norm(F.relu(m.a(x))))),
    "a convolution with two readers": plain(lambda m, x: (lambda y: head(m, m.norm(y) + F.relu(y)))(m.a(x))),
    "rectifier in place": plain(lambda m, x: (lambda y: head(m, F.relu_(y) + y))(m.a(x))),
    "rectifier in place on a view": plain(
        lambda m, x: (lambda y: head(m, torch.cat((F.relu_(y[:, :2]), y[:, :2]), 1)))(m.a(x))
    ),
    "dropout in train mode": plain(
        lambda m, x: head(m, m.drop(m.norm(m.a(x)))), drop=lambda: nn.Dropout(0.5), is_training=True
    ),
    "prelu": plain(lambda m, x: head(m, m.act(m.norm(m.a(x)))), act=lambda: nn.PReLU(4)),
    "group norm and a factor": plain(
        lambda m, x: head(m, m.group(m.a(x)) * m.factor), group=lambda: nn.GroupNorm(2, 4), factor=parameter(4, 1, 1)
    ),
    "standardised weight": plain(_standardised),
    "spectral norm": plain(
        lambda m, x: head(m, m.b(x)), b=lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3))
    ),
    "tied weights": Odd(_tied, lambda m, x: head(m, m.second(F.relu(m.first(x))))),
    "matmul with a parameter": tabled(lambda m, x: m.head(_pooled(m, x) @ m.table)),
    "einsum with a parameter": tabled(lambda m, x: m.head(torch.einsum("bc,cd->bd", _pooled(m, x), m.table))),
    "addmm with a parameter": tabled(lambda m, x: m.head(torch.addmm(m.table[0], _pooled(m, x), m.table))),
    "linear with a computed weight": tabled(lambda m, x: m.head(F.linear(_pooled(m, x), (2 * m.table).t()))),
    "bilinear": Odd(
        lambda: {"conv": nn.Conv2d(4, 4, 3), "mixed": nn.Bilinear(4, 4, 5), "head": nn.Linear(5, 3)},
        lambda m, x: (lambda y: m.head(m.mixed(y, y)))(m.conv(x).mean((2, 3))),
    ),
    "dynamic convolution": Odd(
        lambda: {"gate": nn.Linear(4, 4), "conv": nn.Conv2d(4, 4, 3, groups=1), "head": nn.Linear(4, 3)}, _dynamic
    ),
    "lstm": Odd(
        lambda: {"rows": nn.LSTM(4, 6, batch_first=True), "head": nn.Linear(6, 3)},
        lambda m, x: m.head(m.rows(x)[0][:, -1]),
        ROWS,
    ),
    "gru cell": Odd(lambda: {"cell": nn.GRUCell(4, 6), "head": nn.Linear(6, 3)}, _cells, ROWS),
    "attention": Odd(
        lambda: {"attention": nn.MultiheadAttention(4, 2, batch_first=True), "head": nn.Linear(4, 3)},
        lambda m, x: m.head(m.attention(x, x, x)[0].mean(1)),
        ROWS,
    ),
    "tied embedding": Odd(_tied_embedding, lambda m, x: m.head(F.gelu(m.table(x))), TOKENS),
    "embedding bag": Odd(
        lambda: {"table": nn.EmbeddingBag(VOCABULARY, 6), "head": nn.Linear(6, 3)},
        lambda m, x: m.head(m.table(x)),
        TOKENS,
    ),
}


def odd_network(name: str) -> tuple[nn.Module, Tensor]:
    """A network with random weights and statistics, and six images for it."""
    odd = NETWORKS[name]
    torch.manual_seed(0)
    model = Network(odd)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    images = torch.randint(VOCABULARY, (6, *odd.shape)) if odd.shape == TOKENS else torch.randn(6, *odd.shape)
    return model.train(odd.is_training), images


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if y.sum() > 0:  # FAILS
            return y * 2
        return y


class ToNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() + 1)  # FAILS


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)  # FAILS


class Fine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, *, factor: float = 1.0) -> Tensor:
        return self.layer(x) * factor


class Fails(nn.Module):
    """Four modules inside, and its own code, that cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Branches(), Fine(), ToNumpy()])
        self.rest = nn.Sequential(Fine(), FixedBatch(), Branches())
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        x = self.rest(x)
        if float(x.sum()) > 1e9:  # FAILS
            x = x + 1
        return self.last(x)
