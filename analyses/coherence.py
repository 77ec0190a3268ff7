"""Tables 3 and 8: benchmarks by the LM Evaluation Harness, with the direction ablated by hooks and by weights.

python -m analyses.coherence [MODEL] [--task NAME ...] [--task-folder DIR] [--limit N] [--out DIR]

Needs `pip install 'refusal-lens[evals]'` and, for the official tasks, a network; --task-folder adds tasks of your own.
"""

from __future__ import annotations

from pathlib import Path

from analyses.common import finish, parser, prepared, show
from refusal_lens.behaviour.harness import TASKS, run_harness
from refusal_lens.behaviour.section import harness_section
from refusal_lens.hooks.conditions import named_conditions

CONDITIONS = ("baseline", "ablation", "orthogonalized", "random_ablation")


def main() -> None:
    arguments = parser(__doc__, "coherence")
    arguments.add_argument(
        "--task", action="append", help=f"a task, or one of {', '.join(TASKS)} (default: all of them)"
    )
    arguments.add_argument("--task-folder", type=Path, help="folder of task files (YAML) of your own")
    arguments.add_argument("--limit", type=int, help="documents of each task at most")
    arguments.add_argument("--num-fewshot", type=int, help="examples in the context (default: the task's own)")
    args = arguments.parse_args()
    model, study = prepared(args)
    manager = None
    if args.task_folder:
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=str(args.task_folder))
    # Where norms follow the writes, no edit of weights equals ablation.
    names = [c for c in CONDITIONS if c != "orthogonalized" or not model.backend.norm_after_writes()]
    scores = run_harness(
        model,
        named_conditions(study.selection.chosen, names),
        args.task or list(TASKS),
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        task_manager=manager,
    )
    show(scores.to_frame())
    finish(args, "Coherence", [harness_section(scores)], harness=scores)


if __name__ == "__main__":
    main()
