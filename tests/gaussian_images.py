"""Gaussian images, a flow that is their density, and ways to measure them."""

import math

import torch

from mixerflow.core import Chain, FixedShape, Flow
from mixerflow.restoration import (
    Blurred,
    CentreMask,
    Downsampled,
    Masked,
    Noisy,
    RandomMask,
)
from mixerflow.transforms import (
    Dequantize,
)

EVENT = (2, 4, 4)
D = math.prod(EVENT)


class Linear(FixedShape):
    """``z = M (x - mean)`` of whole images, so that x is ``N(mean, (M^T M)^-1)``."""

    def __init__(self, shape, matrix, mean):
        super().__init__(shape)
        self.register_buffer("matrix", matrix)
        self.register_buffer("mean", mean)

    def forward(self, x, context=None, noise=None):
        z = (x.flatten(1) - self.mean) @ self.matrix.T
        return z.reshape(x.shape), torch.linalg.slogdet(self.matrix)[1].expand(len(x))

    def inverse(self, z, context=None, noise=None):
        x = torch.linalg.solve(self.matrix, z.flatten(1).T).T + self.mean
        return x.reshape(z.shape), -torch.linalg.slogdet(self.matrix)[1].expand(len(z))


def gaussian_prior():
    """Mean and covariance of smooth images of two channels, in the middle of the levels."""
    generator = torch.Generator().manual_seed(1)
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in EVENT))
    near = (-0.5 * torch.cdist(places, places).square() / 2.0).exp()
    skew = torch.randn(D, D, generator=generator, dtype=torch.float64) / 10
    covariance = 30.0 * (near + skew @ skew.T + 0.3 * torch.eye(D, dtype=torch.float64))
    mean = 120 + 10 * torch.rand(D, generator=generator, dtype=torch.float64)
    return covariance, mean


def gaussian_flow(levels=256):
    covariance, mean = gaussian_prior()
    matrix = torch.linalg.cholesky(torch.linalg.inv(covariance)).T
    steps = [Linear(EVENT, matrix, mean)]
    return Flow(
        Chain(*([Dequantize(levels)] if levels else []), *steps), EVENT, levels=levels
    ).double()


MEASUREMENTS = {
    "noisy": Noisy(4.0),
    "box": Masked(mask=CentreMask(2), sigma=2.0),
    "random": Masked(mask=RandomMask(0.4, 3), sigma=2.0),
    "blurred": Blurred(width=0.8, sigma=2.0),
    "downsampled": Downsampled(factor=2, sigma=2.0),
}


def drawn(n=3):
    covariance, mean = gaussian_prior()
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(n, D, generator=generator, dtype=torch.float64)
    return (mean + z @ torch.linalg.cholesky(covariance).T).reshape(n, *EVENT)


def matrix_of(measurement):
    """A as a matrix, from what it does to each unit image."""
    unit = torch.eye(D, dtype=torch.float64).reshape(D, *EVENT)
    return measurement.apply(unit).flatten(1).T
