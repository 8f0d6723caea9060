"""The patch embedding: one column of latents to one token.

As published it is a convolution to 2048 channels, a group norm over a whole song, and a convolution to the model's
width. Given the norm's statistics this is one affine map of a column, and the statistics follow from the mean and the
covariance of the columns alone: so nothing as wide as 2048 channels is ever computed for a frame, and no frame that is
not the song's own can enter the norm.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from acestep_engine.model.linear import project

GROUPS = 32
EPS = 1e-6


class PatchEmbedding(nn.Module):
    # What `fold` leaves, where G are groups, P hidden channels, K channels times height. All float32.
    expand: Tensor  # (P, K)
    expand_bias: Tensor  # (P,)
    gram: Tensor  # (G, K, K): mean over a group's channels of their outer products
    maps: Tensor  # (G, dim, K): a column to a token, through one group that is not scaled yet
    map_offsets: Tensor  # (G, dim)
    map_sums: Tensor  # (G, dim)
    bias: Tensor  # (dim,)

    def __init__(self, in_channels: int, height: int, hidden: int, dim: int) -> None:
        super().__init__()
        expand = nn.Conv2d(in_channels, hidden, (height, 1))
        norm = nn.GroupNorm(GROUPS, hidden, eps=EPS)
        contract = nn.Conv2d(hidden, dim, 1)
        self.early_conv_layers = nn.Sequential(expand, norm, contract)

    def fold(self) -> None:
        """From the loaded convolutions to what `forward` needs."""
        expand, norm, contract = self.early_conv_layers
        assert isinstance(expand, nn.Conv2d)
        assert isinstance(norm, nn.GroupNorm)
        assert isinstance(contract, nn.Conv2d)
        assert expand.bias is not None
        assert contract.bias is not None
        self.dtype = expand.weight.dtype
        matrix, contraction = expand.weight.flatten(1).double(), contract.weight.flatten(1).double()  # (P, K), (dim, P)
        by_group = matrix.unflatten(0, (GROUPS, -1))  # (G, P / G, K)
        offsets = expand.bias.double().unflatten(0, (GROUPS, -1))  # (G, P / G)
        back = (contraction * norm.weight.double()).unflatten(1, (GROUPS, -1)).transpose(0, 1)  # (G, dim, P / G)
        parts = {
            "expand": matrix,
            "expand_bias": expand.bias,
            "gram": (by_group.mT @ by_group) / by_group.shape[1],
            "maps": back @ by_group,
            "map_offsets": (back @ offsets.unsqueeze(-1)).squeeze(-1),
            "map_sums": back.sum(dim=-1),
            "bias": contraction @ norm.bias.double() + contract.bias.double(),
        }
        for name, value in parts.items():
            self.register_buffer(name, value.float().contiguous(), persistent=False)
        del self.early_conv_layers

    def forward(self, songs: Sequence[Tensor]) -> list[Tensor]:
        """Embed songs (channels, height, T), each of its own T, as tokens (T, dim) in the model's precision."""
        if songs[0].device.type == "cpu":  # one by one: products of one row and of several sum in another order
            return [tokens for song in songs for tokens in self._embed([song])]
        return self._embed(songs)

    def _embed(self, songs: Sequence[Tensor]) -> list[Tensor]:
        columns = [song.flatten(0, 1).float() for song in songs]  # (K, T) each
        mean = torch.stack([of_one.mean(dim=1) for of_one in columns])  # (S, K)
        centred = [of_one - its_mean[:, None] for of_one, its_mean in zip(columns, mean, strict=True)]
        covariance = torch.stack([of_one @ of_one.mT / of_one.shape[1] for of_one in centred])  # (S, K, K)
        channels = (mean @ self.expand.mT + self.expand_bias).unflatten(1, (GROUPS, -1))  # (S, G, P / G), over time
        means = channels.mean(dim=2, keepdim=True)  # (S, G, 1)
        spread = (channels - means).square().mean(dim=2)
        scale = torch.rsqrt(spread + covariance.flatten(1) @ self.gram.flatten(1).mT + EPS)  # (S, G)
        matrices = (scale @ self.maps.flatten(1)).unflatten(1, (-1, mean.shape[1])).to(self.dtype)  # (S, dim, K)
        offsets = self.map_offsets - means * self.map_sums  # (S, G, dim)
        biases = (self.bias + (scale[:, None] @ offsets)[:, 0]).to(self.dtype)  # (S, dim)
        return [
            project(of_one.mT.to(self.dtype), matrix, bias)
            for of_one, matrix, bias in zip(columns, matrices, biases, strict=True)
        ]
