"""A conversation as text with coloured tokens."""

from ..report.views import View, coloured_tokens
from .map_records import ConversationMap


def conversation_view(
    record: ConversationMap, condition: str = "baseline", layer: int | None = None, element_id: str = "conversation"
) -> View:
    """CircuitsVis's coloured tokens of a conversation: projection on r̂ at a layer (the direction's own if None), 0
    inside the range of the random directions; one colour scale for all conditions."""
    (place,), layer = record.shown([condition]), record.layer_of(layer)
    outside = record.outside()[:, layer].nan_to_num()
    values = [float(f"{v:.4g}") for v in outside[place, : len(record.tokens[place])].tolist()]
    return View(*coloured_tokens(record.tokens[place], values, float(outside.abs().max())), element_id)
