"""The prompt regressor: image features and latents in, the subject's words out (Eq. 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hbsdk.features import Encoders, FeatureMerge, ImageFeatures

if TYPE_CHECKING:
    from typing_extensions import Self

_MAX_REGION = 16  # regions finer than 16 x 16 are averaged down before they are pooled


class PromptRegressor(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The UNet's down and mid blocks over merged features, pooled by one query a word.

    Source: HybridBooth, Eq. 4; PromptNet (ProFusion, Zhou et al. 2023).
    Deviation: PromptNet sees the noisy latents of every denoising step; this one sees the clean
    latents once, at t = 0, so that a subject is five words and no network.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        unet: dict[str, Any] | None = None,
        clip_dim: int = 1024,
        dino_dim: int = 1024,
        word_dim: int = 768,
        num_words: int = 5,
        pool_dim: int = 512,
        num_pool_heads: int = 8,
        word_scale: float = 0.4,
        encoders: Encoders = "both",
    ) -> None:
        """Build with random weights.

        Args:
            unet: config of the bundle's UNet, whose down and mid blocks are built.
            clip_dim: width of f_c.
            dino_dim: width of f_d.
            word_dim: width of a word embedding.
            num_words: n of Eq. 4.
            pool_dim: width of the pooling attention.
            num_pool_heads: its heads.
            word_scale: typical norm of the text encoder's word embeddings, of the words' start.
            encoders: "clip" or "dino" leaves the other one's features out (the paper's ablation).
        """
        super().__init__()
        self.word_scale = word_scale
        base = UNet2DConditionModel.from_config(unet or {})
        self.conv_in = base.conv_in
        self.time_proj, self.time_embedding = base.time_proj, base.time_embedding
        self.down_blocks, self.mid_block = base.down_blocks, base.mid_block
        channels = list(base.config.block_out_channels)
        context_dim = base.config.cross_attention_dim
        context_dim = context_dim if isinstance(context_dim, int) else context_dim[0]
        self.feature_merge = FeatureMerge(clip_dim, dino_dim, context_dim, encoders)
        scales = [*channels, channels[-1]]  # each level's output, then the middle's
        self.region_norms = nn.ModuleList(nn.LayerNorm(width) for width in scales)
        self.region_projections = nn.ModuleList(nn.Linear(width, pool_dim) for width in scales)
        self.feature_projection = nn.Linear(context_dim, pool_dim)
        self.queries = nn.Parameter(torch.randn(num_words, pool_dim) * pool_dim**-0.5)
        self.pool = nn.MultiheadAttention(pool_dim, num_pool_heads, batch_first=True)
        self.to_words = nn.Sequential(
            nn.LayerNorm(pool_dim), nn.Linear(pool_dim, pool_dim), nn.GELU(),
            nn.Linear(pool_dim, word_dim),
        )  # fmt: skip
        self.base_words = nn.Parameter(torch.zeros(num_words, word_dim))

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel, class_word: Tensor, **config: Any) -> Self:
        """Start from a UNet's weights and from the class word.

        Args:
            unet: the bundle's denoiser, copied, not changed.
            class_word: (word_dim,) embedding of the class word; every word starts as it.
            **config: as of `__init__`.
        """
        settings = {k: v for k, v in unet.config.items() if not k.startswith("_")}
        scale = class_word.detach().float().norm().item()
        regressor: Self = cls(
            unet=settings, word_dim=class_word.shape[-1], word_scale=scale, **config
        )
        for name in ("conv_in", "time_embedding", "down_blocks", "mid_block"):
            getattr(regressor, name).load_state_dict(getattr(unet, name).state_dict())
        with torch.no_grad():
            regressor.base_words.copy_(class_word.detach().float().expand_as(regressor.base_words))
            last = regressor.to_words[-1]
            assert isinstance(last, nn.Linear)
            # The words then start a fifth of their norm off the class word, whatever the width.
            last.weight.mul_(class_word.shape[-1] ** -0.5)
            last.bias.zero_()
        return regressor

    def forward(
        self, latents: Tensor, features: ImageFeatures, regions: Tensor | None = None
    ) -> Tensor:
        """Predict the subject's words.

        Args:
            latents: (N, C, h, w) clean and scaled, of the reference picture.
            features: of the same crop.
            regions: what `regions` returned for these two, if it is known.

        Returns:
            (N, words, word_dim), e of Eq. 4, to stand in the text encoder's embedding table.
        """
        everywhere = self.regions(latents, features) if regions is None else regions
        queries = self.queries.to(everywhere.dtype).expand(everywhere.shape[0], -1, -1)
        pooled, _ = self.pool(queries, everywhere, everywhere, need_weights=False)
        offset = self.to_words(pooled + queries) * self.word_scale
        words: Tensor = self.base_words + offset
        return words

    def regions(self, latents: Tensor, features: ImageFeatures) -> Tensor:
        """Return all that the queries pool: (N, tokens and cells of every scale, pool_dim)."""
        merged = self.feature_merge(features.clip, features.dino)  # f of Eq. 3: (N, T, context)
        count = latents.shape[0]  # not len(): export keeps it a symbol
        time = torch.zeros(count, dtype=torch.long, device=latents.device)
        embedded_time = self.time_embedding(self.time_proj(time).to(latents.dtype))
        regions = [self.feature_projection(merged)]
        for scale, hidden in enumerate(self._scales(latents, embedded_time, merged)):
            cells = hidden.flatten(2).transpose(1, 2)  # (N, h*w, channels)
            regions.append(self.region_projections[scale](self.region_norms[scale](cells)))
        return torch.cat(regions, dim=1)

    def _scales(self, latents: Tensor, time: Tensor, context: Tensor) -> list[Tensor]:
        """Run the blocks; return each level's last full-resolution output and the middle's."""
        hidden = self.conv_in(latents)
        outputs = []
        for block in self.down_blocks:
            keywords = {"encoder_hidden_states": context} if _attends(block) else {}
            hidden, states = block(hidden, time, **keywords)
            # A block that downsamples ends with the downsampled state: the one before is full.
            outputs.append(states[-2] if block.downsamplers else states[-1])
        keywords = {"encoder_hidden_states": context} if _attends(self.mid_block) else {}
        outputs.append(self.mid_block(hidden, time, **keywords))
        return [_at_most(output) for output in outputs]


def _attends(block: nn.Module) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def _at_most(hidden: Tensor) -> Tensor:
    height, width = (min(side, _MAX_REGION) for side in hidden.shape[-2:])
    return nn.functional.adaptive_avg_pool2d(hidden, (height, width))
