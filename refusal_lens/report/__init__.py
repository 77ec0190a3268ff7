"""Records to one self-contained HTML page."""

from .certificate import certificate_section
from .inside import Inside, inside_section
from .page import Card, Figure, Note, Option, Page, Picker, Section, Table, Widget
from .sections import direction_section, effect_section, model_section, provenance_section
from .summary import headline

__all__ = [
    "Card",
    "Figure",
    "Inside",
    "Note",
    "Option",
    "Page",
    "Picker",
    "Section",
    "Table",
    "Widget",
    "certificate_section",
    "direction_section",
    "effect_section",
    "headline",
    "inside_section",
    "model_section",
    "provenance_section",
]
