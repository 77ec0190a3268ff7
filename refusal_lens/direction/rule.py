"""The selection rule's thresholds (paper section 2.3 and appendix C)."""

from dataclasses import dataclass

from ..data.paper import LAYER_CUTOFF, MAX_KL, MIN_INDUCE


@dataclass(frozen=True)
class SelectionRule:
    """The paper's thresholds.

    Attributes:
        max_kl: candidates with a higher KL are dropped (nats).
        min_induce: candidates with a lower induce score are dropped.
        layer_cutoff: layers from int(layer_cutoff * n_layers) on are dropped.
    """

    max_kl: float = MAX_KL
    min_induce: float = MIN_INDUCE
    layer_cutoff: float = LAYER_CUTOFF

    def cut(self, n_layers: int) -> int:
        """First layer that is dropped."""
        return int(self.layer_cutoff * n_layers)
