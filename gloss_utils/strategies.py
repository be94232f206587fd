"""How texts are drawn: the named strategies of the paper, the primer and this course."""

from dataclasses import dataclass

from .choices import check


@dataclass(frozen=True)
class Strategy:
    """How texts are drawn from the model. The defaults are the paper's (section 4.1.4) and the primer's.

    Attributes:
        name: what files and tables call it.
        num_texts: texts drawn per user; beam search keeps as many beams.
        temperature: 0 is beam search; above 0, independent samples at this temperature.
        top_k: a sample's next token is among the `top_k` likeliest...
        top_p: ...and among the likeliest that together hold this much probability.
        max_new_tokens: the answer's limit, in tokens.
        length_penalty: beams are ranked by log-probability / length ** length_penalty. At 0 the beam score
            is the total log-probability and the search is exact about when to stop; 1 is transformers'
            default, the mean per token.
        constrained: every beam is the text of a catalog item.
        deduplicate: keep each text once, likeliest first (CALRec).
    """

    name: str
    num_texts: int = 5
    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 0.95
    max_new_tokens: int = 50
    length_penalty: float = 0.0
    constrained: bool = False
    deduplicate: bool = False

    def __post_init__(self) -> None:
        if self.num_texts < 1 or self.max_new_tokens < 1 or self.temperature < 0:
            raise ValueError(
                f"strategy '{self.name}': num_texts and max_new_tokens must be 1 or more, temperature 0 or more"
            )
        if self.constrained and self.temperature:
            raise ValueError(f"strategy '{self.name}': constrained generation is beam search, set temperature to 0")


STRATEGIES = {
    strategy.name: strategy
    for strategy in [
        Strategy("beam5"),
        Strategy("beam5mean", length_penalty=1.0),
        Strategy("temp0.1", temperature=0.1),
        Strategy("temp0.2", temperature=0.2),
        Strategy("temp0.5", temperature=0.5),
        Strategy("calrec32", num_texts=32, temperature=0.5, deduplicate=True),
        Strategy("constrained5", constrained=True),
    ]
}


def get_strategy(strategy: str | Strategy) -> Strategy:
    """Look a strategy up by name, or pass one's own through.

    Raises:
        ValueError: the name is unknown.
    """
    return strategy if isinstance(strategy, Strategy) else STRATEGIES[check(strategy, STRATEGIES, "strategy")]
