"""Temperature sampling in which every user has a random stream of its own."""

import torch
from transformers import LogitsProcessor

from .strategies import Strategy


class UserSampler(LogitsProcessor):
    """Sample with temperature, top-k and top-p, each user from a random stream of its own.

    `generate(do_sample=True)` draws for the whole batch from one stream, so a user's texts change with its
    neighbours. Here the draw is made visible: add Gumbel noise to the logits / temperature and take the
    largest, which is a sample from their softmax. The chosen token's log-probability under the unmodified
    model is summed on the way, so the samples' likelihoods cost nothing and no step's scores are kept.

    Attributes:
        scores: total log-probability per row so far, [batch * texts].
    """

    def __init__(self, strategy: Strategy, seeds: list[int], eos_token_id: int, device) -> None:
        self.strategy = strategy
        self.streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.eos_token_id = eos_token_id
        rows = len(seeds) * strategy.num_texts
        self.scores = torch.zeros(rows, device=device)
        self.running = torch.ones(rows, dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return scores [rows, vocabulary] in which only the drawn token is possible."""
        likeliest, tokens = (logits / self.strategy.temperature).topk(min(self.strategy.top_k, logits.shape[-1]))
        probabilities = likeliest.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        likeliest = likeliest.masked_fill(before >= self.strategy.top_p, -torch.inf)
        drawn = tokens.gather(1, (likeliest + self._gumbel(likeliest)).argmax(-1, keepdim=True))
        log_probability = logits.log_softmax(-1).gather(1, drawn).squeeze(1)
        self.scores += torch.where(self.running, log_probability, 0.0)
        self.running &= drawn.squeeze(1) != self.eos_token_id
        return torch.full_like(logits, -torch.inf).scatter(1, drawn, 0.0)

    def _gumbel(self, like: torch.Tensor) -> torch.Tensor:
        shape = (self.strategy.num_texts, like.shape[-1])
        noise = [torch.empty(shape, device=like.device).exponential_(generator=stream) for stream in self.streams]
        return -torch.cat(noise).log()
