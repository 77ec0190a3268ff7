"""Records to figures: one function per record, computing nothing, showing nothing."""

from .direction import plot_refusal_rates, plot_selection, plot_trace

__all__ = ["plot_refusal_rates", "plot_selection", "plot_trace"]
