"""The PyTorch peer: the same ResNet20 with average pooling, at its best known settings.

The peer uses channels_last and the fused optimiser. If compiled, it uses `torch.compile` for
network and loss ("max-autotune" with CUDA graphs on GPUs, constants folded for inference). bfloat16
means autocast, and cuDNN chooses its algorithms by measurement. The batch is on the device already,
in floating point and augmented: the peer's time does not include the work on data that this
project's step does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

from benchmarks.workers import ACCELERATOR_STEPS, Call


class Block(nn.Module):
    """Two 3×3 convolutions and an option-A shortcut."""

    def __init__(self, inputs: int, features: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)
        self.stride, self.missing = stride, (features - inputs) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.missing, self.missing))
        return F.relu(y + x, inplace=True)


class ResNet20(nn.Module):
    """He et al. 2015, section 4.2."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, 16, 3, 1, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
        ]
        inputs = 16
        for features in (16, 32, 64):
            for _ in range(3):
                layers.append(Block(inputs, features, features // inputs))
                inputs = features
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def _prepare(batch: int) -> tuple[str, int, nn.Module, torch.Tensor, torch.Tensor]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    model = ResNet20().to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(batch, 3, 32, 32, device=device)
    labels = torch.randint(0, 10, (batch,), device=device)
    count = ACCELERATOR_STEPS if device == "cuda" else 1
    return device, count, model, images.to(memory_format=torch.channels_last), labels


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def train(batch: int, dtype: str, compiled: bool) -> tuple[Call, float]:
    """Returns a call of training steps with SGD and momentum, and its number of images."""
    device, count, model, images, labels = _prepare(batch)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, fused=True)

    def loss_fn(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(images), labels)

    if compiled:
        loss_fn = torch.compile(loss_fn, mode="max-autotune" if device == "cuda" else "default")

    def call() -> None:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = loss_fn(images, labels)
            loss.backward()
            optimizer.step()
        _wait(device)

    return call, batch * count


def evaluate(batch: int, dtype: str, compiled: bool) -> tuple[Call, float]:
    """Returns a call that computes logits in eval mode, and its number of images."""
    device, count, model, images, _ = _prepare(batch)
    model.eval()
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True
        model = torch.compile(model, mode="max-autotune" if device == "cuda" else "default")

    def call() -> None:
        autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
        with torch.no_grad(), autocast:
            for _ in range(count):
                model(images)
        _wait(device)

    return call, batch * count


def convolution(form: str, batch: int, side: int, channels: int) -> Call:
    """Returns a call of a 3×3 convolution that keeps the shape, or of one of its gradients."""
    last = torch.channels_last
    x = torch.randn(batch, channels, side, side).to(memory_format=last)
    kernel = torch.randn(channels, channels, 3, 3).to(memory_format=last)
    wanted = [form == "input gradient", form == "kernel gradient", False]

    @torch.no_grad()
    def call() -> None:
        if form == "forward":
            F.conv2d(x, kernel, padding=1)
        else:
            torch.ops.aten.convolution_backward(
                x, x, kernel, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted
            )

    return call
