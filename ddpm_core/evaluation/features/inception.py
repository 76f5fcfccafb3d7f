"""The Inception network of 2015 that FID is defined by (Szegedy et al. 2015; Heusel et al. 2017).

It is not torchvision's: TensorFlow 1's mean pooling leaves padding out of its means, the last block takes a maximum where the
paper has a mean, batch norm's eps is 1e-3, and there are 1,008 classes. Parameters have the names of the published file.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from ddpm_core.types import Float, Tensor

NUM_FEATURES, NUM_CLASSES = 2048, 1008
Kernel = tuple[int, int]
Pool = Callable[[Tensor], Tensor]


class Inception(nn.Module):
    """Images of 299x299 in, pooled features and logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, (3, 3), padding=(0, 0))
        self.Conv2d_2b_3x3 = _Conv(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = _Conv(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Conv(80, 192, (3, 3), padding=(0, 0))
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _BlockA(192, 32), _BlockA(256, 64), _BlockA(288, 64)
        self.Mixed_6a = _BlockB(288)
        self.Mixed_6b, self.Mixed_6c = _BlockC(768, 128), _BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = _BlockC(768, 160), _BlockC(768, 192)
        self.Mixed_7a = _BlockD(768)
        self.Mixed_7b, self.Mixed_7c = _BlockE(1280, _mean), _BlockE(2048, _max)
        self.fc = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def forward(self, x: Float[Tensor, "b 3 299 299"]) -> tuple[Float[Tensor, "b 2048"], Float[Tensor, "b 1008"]]:
        """The pooled features, by which FID and KID go, and the logits without their bias, by which the Inception score goes.

        Args:
            x: about -1..1, by one of `resize.RESIZES`.
        """
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halved(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_halved(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features = x.mean((2, 3))
        return features, features @ self.fc.weight.T


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU; the size is kept unless a stride or a padding says otherwise."""

    def __init__(
        self, channels: int, width: int, kernel: Kernel, *, stride: int = 1, padding: Kernel | None = None
    ) -> None:
        super().__init__()
        same = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else (0, 0)
        self.conv = nn.Conv2d(channels, width, kernel, stride, same if padding is None else padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


def _halved(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, stride=2)


def _max(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, stride=1, padding=1)


def _mean(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _BlockA(nn.Module):
    """35x35: kernels of 1, 5 and twice 3."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(channels, 64, (1, 1))
        self.branch5x5_1 = _Conv(channels, 48, (1, 1))
        self.branch5x5_2 = _Conv(48, 64, (5, 5))
        self.branch3x3dbl_1 = _Conv(channels, 64, (1, 1))
        self.branch3x3dbl_2 = _Conv(64, 96, (3, 3))
        self.branch3x3dbl_3 = _Conv(96, 96, (3, 3))
        self.branch_pool = _Conv(channels, pooled, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_mean(x))], 1)


class _BlockB(nn.Module):
    """35x35 to 17x17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(channels, 384, (3, 3), stride=2)
        self.branch3x3dbl_1 = _Conv(channels, 64, (1, 1))
        self.branch3x3dbl_2 = _Conv(64, 96, (3, 3))
        self.branch3x3dbl_3 = _Conv(96, 96, (3, 3), stride=2)

    def forward(self, x: Tensor) -> Tensor:
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), twice, _halved(x)], 1)


class _BlockC(nn.Module):
    """17x17: kernels of 7, as rows and columns."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = _Conv(channels, 192, (1, 1))
        self.branch7x7_1 = _Conv(channels, width, (1, 1))
        self.branch7x7_2 = _Conv(width, width, row)
        self.branch7x7_3 = _Conv(width, 192, column)
        self.branch7x7dbl_1 = _Conv(channels, width, (1, 1))
        self.branch7x7dbl_2 = _Conv(width, width, column)
        self.branch7x7dbl_3 = _Conv(width, width, row)
        self.branch7x7dbl_4 = _Conv(width, width, column)
        self.branch7x7dbl_5 = _Conv(width, 192, row)
        self.branch_pool = _Conv(channels, 192, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_mean(x))], 1)


class _BlockD(nn.Module):
    """17x17 to 8x8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(channels, 192, (1, 1))
        self.branch3x3_2 = _Conv(192, 320, (3, 3), stride=2)
        self.branch7x7x3_1 = _Conv(channels, 192, (1, 1))
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = _Conv(192, 192, (3, 3), stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), _halved(x)], 1)


class _BlockE(nn.Module):
    """8x8: kernels of 3 that fork into a row and a column."""

    def __init__(self, channels: int, pool: Pool) -> None:
        super().__init__()
        self._pool = pool
        self.branch1x1 = _Conv(channels, 320, (1, 1))
        self.branch3x3_1 = _Conv(channels, 384, (1, 1))
        self.branch3x3_2a = _Conv(384, 384, (1, 3))
        self.branch3x3_2b = _Conv(384, 384, (3, 1))
        self.branch3x3dbl_1 = _Conv(channels, 448, (1, 1))
        self.branch3x3dbl_2 = _Conv(448, 384, (3, 3))
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1))
        self.branch_pool = _Conv(channels, 192, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        forks = [
            self.branch3x3_2a(once),
            self.branch3x3_2b(once),
            self.branch3x3dbl_3a(twice),
            self.branch3x3dbl_3b(twice),
        ]
        return torch.cat([self.branch1x1(x), *forks, self.branch_pool(self._pool(x))], 1)
