"""Writes unet_tiny.npz: a tiny U-Net written in PyTorch, which is needed for it.

python -m tests.references.make_unet_tiny
"""

import pathlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

PATH = pathlib.Path(__file__).parent / "unet_tiny.npz"
FEATURES, POOLINGS = 2, 2


def block(inputs, features):
    layers = []
    for n in (inputs, features):
        layers += [
            nn.Conv2d(n, features, 3, padding=1, bias=False),
            nn.InstanceNorm2d(features),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """As fastMRI describes it (arXiv 1811.08839)."""

    def __init__(self):
        super().__init__()
        widths = [FEATURES * 2**n for n in range(POOLINGS + 1)]
        inputs = [2, *widths[:-1]]
        self.down = nn.ModuleList(block(*n) for n in zip(inputs, widths, strict=True))
        self.enlarge = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(2 * n, n, 2, 2, bias=False),
                nn.InstanceNorm2d(n),
                nn.LeakyReLU(0.2),
            )
            for n in widths[-2::-1]
        )
        self.up = nn.ModuleList(block(2 * n, n) for n in widths[-2::-1])
        self.last = nn.Conv2d(FEATURES, 2, 1)

    def forward(self, x):
        skipped = []
        for down in self.down[:-1]:
            x = down(x)
            skipped.append(x)
            x = F.avg_pool2d(x, 2)
        x = self.down[-1](x)
        for enlarge, up in zip(self.enlarge, self.up, strict=True):
            x, skip = enlarge(x), skipped.pop()
            rows, columns = (skip.shape[n] - x.shape[n] for n in (2, 3))
            x = up(torch.cat([F.pad(x, (0, columns, 0, rows), "reflect"), skip], 1))
        return self.last(x)


def main():
    torch.manual_seed(0)
    network, found = UNet(), {}
    image = torch.randn(2, 2, 13, 18)  # sizes that the poolings do not divide
    output = network(image)
    output.square().mean().backward()
    for name, weight in network.named_parameters():
        found[f"weight/{name}"] = weight.detach()
        found[f"gradient/{name}"] = weight.grad
    found["image"], found["output"] = (
        x.detach().permute(0, 2, 3, 1) for x in (image, output)
    )
    np.savez(PATH, **{name: value.numpy() for name, value in found.items()})


if __name__ == "__main__":
    main()
