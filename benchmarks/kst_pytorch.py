"""The K-Space Transformer in PyTorch, as one writes it there.

Written from `docs/architecture.md` and `kst_jax.models`: the network in its default
form, for one coil and masks with an exact number of points. Attention is PyTorch's
fused one. Parameters have the names of ours, and images are complex64 (B, H, W).
"""

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SPATIAL = (-2, -1)


def fft2c(image: Tensor) -> Tensor:
    """Centred orthonormal Fourier transform of (..., H, W)."""
    spectrum = torch.fft.fft2(torch.fft.ifftshift(image, _SPATIAL), norm="ortho")
    return torch.fft.fftshift(spectrum, _SPATIAL)


def ifft2c(spectrum: Tensor) -> Tensor:
    """Inverts `fft2c`."""
    image = torch.fft.ifft2(torch.fft.ifftshift(spectrum, _SPATIAL), norm="ortho")
    return torch.fft.fftshift(image, _SPATIAL)


def channels(image: Tensor) -> Tensor:
    """Complex (B, H, W) to two channels (B, 2, H, W)."""
    return torch.view_as_real(image).movedim(-1, 1)


def joined(image_Bx2xHxW: Tensor) -> Tensor:
    """Inverts `channels`."""
    return torch.view_as_complex(image_Bx2xHxW.movedim(1, -1).contiguous())


def coordinates(size: tuple[int, int]) -> Tensor:
    """Coordinates (H W, 2) of the points of a grid, in [0, 1]."""
    return torch.cartesian_prod(*(torch.linspace(0, 1, n) for n in size))


def positional_encoding(position: Tensor, width: int) -> Tensor:
    """Sines and cosines (..., width) of coordinates (..., 2)."""
    frequency = torch.exp(torch.arange(0, width // 2, 2) * (-2 * math.log(1e4) / width))
    angle = 250 * position[..., None] * frequency
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-3)


class Float32Linear(nn.Linear):
    """Linear layer that autocast leaves in float32."""

    @torch.autocast("cpu", enabled=False)
    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return super().forward(x.float())


class Float32Conv(nn.Conv2d):
    """Convolution that autocast leaves in float32."""

    @torch.autocast("cpu", enabled=False)
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        return super().forward(x.float())


class Perceptron(nn.Module):
    """Linear, ReLU, linear."""

    def __init__(
        self, sizes: tuple[int, int, int], last: type[nn.Linear] = nn.Linear
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(sizes[0], sizes[1])
        self.output = last(sizes[1], sizes[2])

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return self.output(F.relu(self.hidden(x), inplace=True))


class AttentionBlock(nn.Module):
    """Pre-norm attention; one LayerNorm for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )

    def forward(self, x_BxMxD: Tensor, memory_BxLxD: Tensor) -> Tensor:
        """(B, M, D) to (B, M, D)."""
        y = z = self.norm(x_BxMxD)
        if memory_BxLxD is not x_BxMxD:
            z = self.norm(memory_BxLxD)
        q_BxKxMxC, k_BxKxLxC, v_BxKxLxC = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in (self.query(y), self.key(z), self.value(z))
        )
        o_BxKxMxC = F.scaled_dot_product_attention(q_BxKxMxC, k_BxKxLxC, v_BxKxLxC)
        return x_BxMxD + self.out(o_BxKxMxC.transpose(1, 2).flatten(2))


class MLPBlock(nn.Module):
    """Pre-norm perceptron."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.mlp = Perceptron((width, hidden, width))

    def forward(self, x_BxMxD: Tensor) -> Tensor:
        """(B, M, D) to (B, M, D)."""
        return x_BxMxD + self.mlp(self.norm(x_BxMxD))


class SpectrumHead(nn.Module):
    """Two values of the spectrum from each hidden state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Perceptron((width, width, 2), Float32Linear)

    def forward(self, x_BxMxD: Tensor) -> Tensor:
        """(B, M, D) to (B, M, 2)."""
        return self.mlp(self.norm(x_BxMxD))


class Refinement(nn.Module):
    """Convolutions in the image domain, then data consistency."""

    def __init__(self, features: int, layers: int, kernel: int) -> None:
        super().__init__()
        inner = [
            nn.Conv2d(features if n else 2, features, kernel, padding="same")
            for n in range(layers)
        ]
        self.convolutions = nn.ModuleList([*inner, Float32Conv(features, 2, 1)])

    def forward(self, image: Tensor, kspace: Tensor, mask: Tensor) -> Any:
        """The refined image and its spectrum (B, H, W)."""
        x = channels(image)
        for convolution in self.convolutions[:-1]:
            x = F.leaky_relu(convolution(x), 0.1, inplace=True)
        change = joined(self.convolutions[-1](x))
        spectrum = torch.where(mask, kspace, fft2c(image + change))
        return ifft2c(spectrum), spectrum


class Layer(nn.Module):
    """A layer of the encoder or of a decoder: the parts that it has, by name."""

    def __init__(self, c: SimpleNamespace, *parts: str) -> None:
        super().__init__()
        for part in parts:
            self.add_module(part, AttentionBlock(c.width, c.heads))
        self.mlp = MLPBlock(c.width, c.mlp)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """(B, M, D) to (B, M, D)."""
        if memory is not None:
            x = self.cross_attention(x, memory)
        if hasattr(self, "self_attention"):
            x = self.self_attention(x, x)
        return self.mlp(x)


class KSpaceTransformer(nn.Module):
    """Encoder, low- and high-resolution decoder; `c` is a config's section `model`."""

    def __init__(self, c: SimpleNamespace) -> None:
        super().__init__()
        self.c = c
        self.embed_token, self.embed_query = (
            Perceptron((2, c.width, c.width)) for _ in range(2)
        )
        parts = {
            "encoder": (c.encoder_layers, ["self_attention"]),
            "lr_decoder": (c.lr_layers, ["cross_attention", "self_attention"]),
            "hr_decoder": (c.hr_layers, ["cross_attention"]),
        }
        for name, (count, attention) in parts.items():
            layers = nn.ModuleList(Layer(c, *attention) for _ in range(count))
            self.add_module(name, layers)
        for layer in (*self.lr_decoder, *self.hr_decoder):
            layer.head = SpectrumHead(c.width)
        sizes = c.refinement_features, c.refinement_layers, c.refinement_kernel
        for layer in self.hr_decoder:
            layer.refinement = Refinement(*sizes)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        """The images (B, h, w) that each layer of the decoders gives, by their kind."""
        c, kspace, mask, query = self.c, batch["kspace"], batch["mask"], batch["query"]
        images: dict[str, list[Tensor]] = {"lr": [], "kspace": [], "refined": []}
        x = self.embed_token(batch["value"])
        memory = x + positional_encoding(batch["position"], c.width)
        for layer in self.encoder:
            memory = layer(memory)
        encoding_LxD = positional_encoding(coordinates(c.lr_size), c.width)
        x = encoding_LxD.expand(len(kspace), -1, -1)
        for layer in self.lr_decoder:
            x = layer(x, memory)
            spectrum = torch.view_as_complex(layer.head(x)).unflatten(1, c.lr_size)
            images["lr"].append(ifft2c(spectrum))
        memory = x
        upsampled = F.interpolate(
            channels(images["lr"][-1]), mask.shape[1:], mode="bicubic"
        )
        spectrum = fft2c(joined(upsampled))
        position = coordinates(mask.shape[1:])[query]
        x = positional_encoding(position, c.width)
        where = query[..., None].expand(-1, -1, 2)
        measured = torch.view_as_real(kspace).flatten(1, 2)
        for layer in self.hr_decoder:
            value = torch.view_as_real(spectrum).flatten(1, 2).gather(1, where)
            x = layer(x + self.embed_query(value), memory)
            filled = measured.scatter(1, where, layer.head(x))
            image = ifft2c(torch.view_as_complex(filled).view_as(kspace))
            refined, spectrum = layer.refinement(image, kspace, mask)
            images["kspace"].append(image)
            images["refined"].append(refined)
        return images
