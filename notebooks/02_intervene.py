# %% [markdown]
# # Intervening on the direction
#
# Changing a direction that merely *correlates* with refusal would have no effect. Three interventions (section 2.4 of
# [the paper](https://arxiv.org/abs/2406.11717)) show whether it is necessary and sufficient, each with a placebo: the
# same intervention with a random direction of equal norm.

# %%
import pandas as pd

import refusal_lens as rl
from refusal_lens.refusal.replies import complete
from refusal_lens.study.summary import effect_sentence
from refusal_lens.hooks.conditions import named_conditions
from refusal_lens.behaviour.cross_entropy import losses
from refusal_lens.models.texts import own_completions
from refusal_lens.exactness.identities import orthogonalization_gap
from refusal_lens.hooks.orthogonalize import Orthogonalize
from refusal_lens.refusal.tokens import find_refusal_tokens
from refusal_lens.behaviour.figures import plot_losses
from refusal_lens.behaviour.figures import plot_refusal_rates

model = rl.load_model("organism")
harmful, harmless = (rl.PromptSet.load(path, sizes=(128, 32, 64)) for path in rl.organism.instructions().values())
tokens = find_refusal_tokens(model, harmful.train.texts, harmless.train.texts)
candidates = rl.extract_directions(model, harmful.train, harmless.train)
selection = rl.select_direction(model, candidates, harmful.val, harmless.val, refusal_tokens=tokens, relax=True)
direction = selection.chosen
direction.label

# %% [markdown]
# ## By hand
#
# Interventions are values; `model.hooks(...)` applies them, and leaving the `with` block removes them.
# `Ablate` removes the component along r̂ from every write to the residual stream, at every token. Here is a harmless
# request with the direction *added* at its layer.

# %%
request = harmless.test.texts[0]
print("asked:    ", request)
print("baseline: ", model.generate([request], 30)[0])
with model.hooks(rl.Add(direction)):
    print("added:    ", model.generate([request], 30)[0])
with model.hooks(rl.Add(direction.random_control(0))):
    print("random:   ", model.generate([request], 30)[0])

# %% [markdown]
# The model begins to refuse a harmless request. (This tiny model then repeats itself: added at every token of the reply,
# the direction keeps saying "begin a refusal". Its model card reports that as a criterion not met.)
#
# ## Necessity and sufficiency, with intervals
#
# Greedy replies to held-out prompts, judged by the paper's list of phrases; 95% Clopper-Pearson intervals.

# %%
necessary = complete(
    model, harmful.test.texts, named_conditions(direction, ["baseline", "ablation", "random_ablation"]), "harmful", 24
)
sufficient = complete(
    model, harmless.test.texts, named_conditions(direction, ["baseline", "addition", "random_addition"]), "harmless", 24
)
rates = {"harmful": necessary.rates, "harmless": sufficient.rates}
plot_refusal_rates(rates)

# %%
pd.DataFrame({kind: {name: str(r) for name, r in of.items()} for kind, of in rates.items()})

# %%
print("necessary:", effect_sentence(rates["harmful"], "ablation", -1))
print("sufficient:", effect_sentence(rates["harmless"], "addition", +1))

# %% [markdown]
# "Not refused" is not the same as "complied": under ablation, most of this model's replies to harmful prompts drift to a
# harmless neighbour of the request (see its model card). The substring judge can't tell the difference;
# `refusal_lens.behaviour.judges` has others.
#
# ## By weights
#
# The same as `Ablate`, without hooks: every matrix that writes to the residual stream is made orthogonal to r̂, only inside
# the `with` block. No checkpoint is written, and afterwards the parameters are the same objects as before.

# %%
with model.hooks(Orthogonalize(direction)):
    print("orthogonalized refuses", complete(model, harmful.test.texts, {"now": []}, "harmful", 24).rates["now"])
print("largest logit gap to hooks:", orthogonalization_gap(model, direction, harmful.test.texts[:8]))

# %% [markdown]
# ## What else changes?
#
# The loss on the model's own replies to harmless prompts: ablation should hardly move it (appendix G.3).

# %%
conditions = named_conditions(direction, ["baseline", "ablation", "random_ablation", "subtraction", "random_subtraction"])
cost = losses(model, own_completions(model, harmless.test.texts, 32), conditions, "own completions")
plot_losses([cost])

# %%
cost.to_frame().round(3)

# %% [markdown]
# Subtracting r at its layer costs far more than ablating it, and so does subtracting a random vector of that length: the
# length does the damage, not this direction.
#
# Who *writes* the direction? [03_attribute](03_attribute.ipynb).

# %% [markdown]
# ## Now your own model
#
# On models with norms after their writes (Gemma 2 and 3, OLMo 2) no weight edit equals ablation; `Orthogonalize`
# raises an error there, and `allow_gap=True` edits anyway, so that the gap can be measured.

# %%
MODEL, HARMFUL, HARMLESS = "", "harmful.txt", "harmless.txt"
if MODEL:
    model = rl.load_model(MODEL)
    harmful, harmless = (rl.PromptSet.load(path) for path in (HARMFUL, HARMLESS))
    candidates = rl.extract_directions(model, harmful.train, harmless.train)
    direction = rl.select_direction(model, candidates, harmful.val, harmless.val, relax=True).chosen
    named = named_conditions(direction, ["baseline", "ablation", "random_ablation"])
    print(complete(model, harmful.test.texts[:16], named, "harmful", 32).rates)
