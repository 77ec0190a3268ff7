"""Beyond the paper: a learned direction and a learned cone beside the difference in means (Wollschläger et al. 2025).

A run that is interrupted goes on from its last validation (`OUT/training`).

    python -m analyses.cones [MODEL] [--dimension K] [--seeds N] [--steps N] [--batch N] [--out DIR]
"""

from __future__ import annotations

import time

from analyses.common import finish, parser, prepared, show
from refusal_lens.data.prompts import PromptPair
from refusal_lens.direction.cone_section import cones_section
from refusal_lens.direction.cones import learn_cone
from refusal_lens.direction.subspace import pca_subspace, representational_independence, subspace_effects
from refusal_lens.engines.local import named_engine
from refusal_lens.progress import automatic
from refusal_lens.records.direction import Subspace
from refusal_lens.study.config import StudyConfig


def main() -> None:
    arguments = parser(__doc__, "cones")
    arguments.add_argument("--dimension", type=int, default=2, help="of the cone")
    arguments.add_argument("--seeds", type=int, default=3, help="random starts of the direction and of the cone")
    arguments.add_argument("--steps", type=int, default=150, help="most steps per start")
    arguments.add_argument("--batch", type=int, default=8, help="prompts of each kind per step")
    arguments.add_argument("--samples", type=int, default=2, help="directions sampled inside the cone per step")
    arguments.add_argument("--lr", type=float, default=0.01, help="learning rate of Adam")
    arguments.add_argument("--engine", default="local", help="local or ray")
    args = arguments.parse_args()
    model, study = prepared(args)
    data, r = PromptPair(study.harmful, study.harmless), study.selection.chosen
    learned, engine = [], named_engine(args.engine, StudyConfig(model=args.model))(model)
    for dimension in (1, args.dimension):
        start = time.perf_counter()
        record = learn_cone(
            model,
            data,
            r,
            dimension=dimension,
            seeds=range(args.seeds),
            steps=args.steps,
            lr=args.lr,
            batch_size=args.batch,
            samples=args.samples,
            folder=args.out / "training",
            progress=automatic,
            engine=engine,
        )
        learned.append(record)
        steps = int((~record.losses[..., 0].isnan()).sum())
        print(*record.summary(), f"{steps} steps, {time.perf_counter() - start:.0f} s in this call", sep="\n")
    engine.close()
    direction, cone = learned
    spaces = {"difference in means": Subspace(r.unit.double()[None], "mean", r)}
    spaces |= {f"learned, seed {seed}": direction.cone(seed) for seed in direction.seeds}
    spaces |= {f"cone, seed {seed}": cone.cone(seed) for seed in cone.seeds}
    spaces["pca"] = pca_subspace(model, data.harmful.train, data.harmless.train, r, args.dimension)
    test = data.harmful.test, data.harmless.test
    effects = subspace_effects(model, spaces, *test, study.refusal_tokens, max_new_tokens=args.max_new_tokens)
    show(effects.to_frame())
    print(*effects.summary(), sep="\n")
    read = {"r": r} | {f"learned {seed}": direction.learned(seed) for seed in direction.seeds}
    read |= {f"cone {seed}.{i + 1}": cone.learned(seed, i) for seed in cone.seeds for i in range(cone.dimension)}
    independence = representational_independence(model, read, data.harmful.test)
    show(independence.to_frame())
    records = {"effects": effects, "direction": direction, "cone": cone, "independence": independence}
    for name, found in records.items():
        found.save(study.folder / "cones" / name)  # the study's report shows them
    page = [cones_section(effects, learned, independence)]
    finish(args, "Learned directions and cones", page, **records)


if __name__ == "__main__":
    main()
