"""Records to one self-contained HTML page."""

from .attribution import attribution_section, certificate_section
from .page import Card, Figure, Page, Section, Table, Widget
from .sections import direction_section, effect_sections, headline, model_section, provenance_section

__all__ = [
    "Card",
    "Figure",
    "Page",
    "Section",
    "Table",
    "Widget",
    "attribution_section",
    "certificate_section",
    "direction_section",
    "effect_sections",
    "headline",
    "model_section",
    "provenance_section",
]
