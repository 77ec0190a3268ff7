"""Records to one self-contained HTML page."""

from .page import Card, Figure, Page, Section, Table
from .sections import direction_section, effect_sections, model_section, provenance_section

__all__ = [
    "Card",
    "Figure",
    "Page",
    "Section",
    "Table",
    "direction_section",
    "effect_sections",
    "model_section",
    "provenance_section",
]
