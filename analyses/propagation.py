"""How the refusal direction travels: its projection by layer and token, and which component moved it there.

python -m analyses.propagation [MODEL] [--out DIR]
"""

from __future__ import annotations

import pandas as pd

from refusal_lens.attribution.figures import plot_propagation, plot_sources, plot_sources_by_region
from refusal_lens.attribution.ranking import choose_heads
from refusal_lens.attribution.sources import propagation, source_contributions
from refusal_lens.records.labels import head_label

from .common import parser, prepared


def main() -> None:
    args = parser(__doc__, "propagation").parse_args()
    model, study = prepared(args)
    direction = study.selection.chosen
    figures = []
    for name, prompts in (("harmful", study.harmful.test.texts), ("harmless", study.harmless.test.texts)):
        found = propagation(model, prompts, direction)
        print(f"\n{name}, n = {len(prompts)}: mean projection on r̂ by layer (rows) and token")
        means = found.by_column().nanmean(1)
        rows = [*range(model.n_layers), "end"]
        print(pd.DataFrame(means.tolist(), rows, list(found.columns)).round(2).to_string())
        print("largest writes along r̂:")
        print(found.movers(10).round(3).to_string(index=False))
        found.save(args.out / f"propagation_{name}")
        figures += [plot_propagation(found), plot_propagation(found, prompt=0)]
    sources = source_contributions(model, study.harmful.test.texts, direction)
    by_region = sources.by_region().mean(2)
    heads = choose_heads(sources.head_contributions())
    print("\nfrom where the top heads bring r̂ to the last token (harmful prompts):")
    table = [[head_label(*head), *by_region[head].tolist()] for head in heads]
    print(pd.DataFrame(table, columns=["head", *sources.regions]).round(3).to_string(index=False))
    sources.save(args.out / "sources_harmful")
    figures += [plot_sources_by_region(sources, heads), plot_sources(sources, 0, heads)]
    html = "".join(f.to_html(full_html=False, include_plotlyjs=i == 0) for i, f in enumerate(figures))
    (args.out / "propagation.html").write_text(html, "utf-8")


if __name__ == "__main__":
    main()
