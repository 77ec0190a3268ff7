# %% [markdown]
# # Intervening on the direction
#
# Changing a direction that merely *correlates* with refusal would have no effect. Three interventions (section 2.4 of
# [the paper](https://arxiv.org/abs/2406.11717)) show whether the direction is necessary and sufficient, each with a
# placebo: the same intervention with a random direction of equal norm.

# %%
import pandas as pd

import refusal_lens as rl

model = rl.load_model("organism")
data = rl.load_prompts("organism", sizes=(128, 32, 64))
harmful, harmless = data.harmful, data.harmless
found = rl.find_direction(model, data)
direction, tokens = found.direction, found.refusal_tokens
direction.label

# %% [markdown]
# ## By hand
#
# Interventions are values; `model.hooks(...)` applies them, and leaving the `with` block removes them.
# `Ablate` removes the component along r̂ from every write to the residual stream, at every token. Here is a harmless
# request with the direction *added* at its layer.

# %%
request = harmless.test[0]
print("asked:    ", request)
print("baseline: ", model.generate(request, 30))
with model.hooks(rl.Add(direction)):
    print("added:    ", model.generate(request, 30))
with model.hooks(rl.Add(direction.random_control(0))):
    print("random:   ", model.generate(request, 30))

# %% [markdown]
# The model begins to refuse a harmless request. (This tiny model then repeats itself: added at every token of the reply,
# the direction keeps saying "begin a refusal". Its model card reports that as a criterion not met.)
#
# ## Necessity and sufficiency, with intervals
#
# Greedy replies to held-out prompts, judged by the paper's list of phrases; 95% Clopper-Pearson intervals.

# %%
removed = rl.hooks.named_conditions(direction, ["baseline", "ablation", "random_ablation"])
added = rl.hooks.named_conditions(direction, ["baseline", "addition", "random_addition"])
necessary = rl.refusal.complete(model, harmful.test, removed, "harmful", 24)
sufficient = rl.refusal.complete(model, harmless.test, added, "harmless", 24)
rates = {"harmful": necessary.rates, "harmless": sufficient.rates}
rl.plots.plot_refusal_rates(rates)

# %%
pd.DataFrame({kind: {name: str(r) for name, r in of.items()} for kind, of in rates.items()})

# %% [markdown]
# What share of the refusals does ablation remove, and what share of the answers does addition turn into refusals? `grade` puts
# a share into words by its interval; the random direction should change almost nothing.

# %%
lost, turned = "of the refusals are gone", "of the answers became refusals"
effects = {"ablation": ("harmful", -1), "random_ablation": ("harmful", -1)}
effects |= {"addition": ("harmless", +1), "random_addition": ("harmless", +1)}
for name, (kind, sign) in effects.items():
    share = rl.report.net_effect(rates[kind], name, sign)
    print(f"{name}: {rl.report.percent(share)} {lost if sign < 0 else turned}: {rl.report.grade(share)}")

# %% [markdown]
# "Not refused" is not the same as "complied": under ablation, most of this model's replies to harmful prompts drift to a
# harmless neighbour of the request (see its model card). The substring judge can't tell the difference;
# `rl.behaviour.judges` has others.
#
# ## By weights
#
# The same as `Ablate`, without hooks: every matrix that writes to the residual stream is made orthogonal to r̂, only inside
# the `with` block. No checkpoint is written, and afterwards the parameters are the same objects as before.

# %%
with model.hooks(rl.Orthogonalize(direction)):
    print("orthogonalized refuses", rl.refusal.complete(model, harmful.test, {"now": []}, "harmful", 24).rates["now"])
    by_weights = model.logits(model.tokenize(harmful.test[:8]))
with model.hooks(rl.Ablate(direction)):
    by_hooks = model.logits(model.tokenize(harmful.test[:8]))
print("largest difference of a logit from ablation by hooks:", float((by_weights - by_hooks).abs().max()))

# %% [markdown]
# ## What else changes?
#
# The loss on the model's own replies to harmless prompts: ablation should hardly move it (appendix G.3).

# %%
names = ["baseline", "ablation", "random_ablation", "subtraction", "random_subtraction"]
own = rl.models.own_completions(model, harmless.test, 32)
cost = rl.behaviour.losses(model, own, rl.hooks.named_conditions(direction, names), "own replies")
cost.plot()

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
    data = rl.load_prompts(HARMFUL, HARMLESS)
    direction = rl.find_direction(model, data).direction
    named = rl.hooks.named_conditions(direction, ["baseline", "ablation", "random_ablation"])
    print(rl.refusal.complete(model, data.harmful.test[:16], named, "harmful", 32).rates)
