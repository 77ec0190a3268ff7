"""What writes the direction, component by component, head by head and token by token, exactly."""

from .causal import ReplaceHeads, causal_check
from .components import component_contributions, head_contributions, neuron_contributions
from .heads import choose_heads, report_heads, top_heads
from .logits import compliance_tokens, direct_logit_attribution
from .patching import attribution_patching, equal_length_pairs
from .records import (
    ComponentContributions,
    HeadContributions,
    LogitAttribution,
    NeuronContributions,
    head_label,
)
from .reports import CausalCheck, HeadReport, PatchingComparison
from .sources import attention_patterns, propagation, source_contributions
from .token_records import AttentionPatterns, Propagation, SourceContributions

__all__ = [
    "AttentionPatterns",
    "CausalCheck",
    "ComponentContributions",
    "HeadContributions",
    "HeadReport",
    "LogitAttribution",
    "NeuronContributions",
    "PatchingComparison",
    "Propagation",
    "ReplaceHeads",
    "SourceContributions",
    "attention_patterns",
    "attribution_patching",
    "causal_check",
    "choose_heads",
    "compliance_tokens",
    "component_contributions",
    "direct_logit_attribution",
    "equal_length_pairs",
    "head_contributions",
    "head_label",
    "neuron_contributions",
    "propagation",
    "report_heads",
    "source_contributions",
    "top_heads",
]
