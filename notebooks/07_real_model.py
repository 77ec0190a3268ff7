# %% [markdown]
# # A real chat model, from start to finish
#
# The other notebooks use a tiny embedded model on which everything is clear. Real models are not like that: effects are
# partial, intervals are wide, and some questions stay open. This notebook goes through all steps on a real model and says how
# large and how certain each finding is. The stored outputs are those of Qwen2.5-Coder-0.5B-Instruct, a quantized file run on a
# CPU.
#
# `REFUSAL_LENS_REAL_MODEL` names the model (a hub id, a folder, a .gguf file), `REFUSAL_LENS_INSTRUCTIONS` a folder with the
# prompt files harmful_train.json, harmful_val.json ... and harmless_... in it. Without them the embedded model is used. From
# nothing, a model of this size takes some 20 minutes on two cores (estimated, not timed); with `REFUSAL_LENS_STUDY`, the folder of a finished
# `refusal-lens run`, the direction and the replies are read from there, with more prompts.

# %%
import os

import refusal_lens as rl

MODEL = os.environ.get("REFUSAL_LENS_REAL_MODEL", "organism")
PROMPTS = os.environ.get("REFUSAL_LENS_INSTRUCTIONS", "")
STUDY = os.environ.get("REFUSAL_LENS_STUDY", "")
model = rl.load_model(MODEL)
model

# %% [markdown]
# ## The direction
#
# Extracted on the training prompts, chosen on the validation prompts. Where no candidate passes the paper's rule, as on
# this model, the nearest one is taken and what was relaxed is recorded: everything below describes *that* direction.

# %%
if STUDY:
    study = rl.Study(STUDY)
    data = rl.data.PromptPair(study.harmful, study.harmless)
    found = rl.direction.FoundDirection(study.selection, study.candidates, study.refusal_tokens)
else:
    files = (f"{PROMPTS}/harmful", f"{PROMPTS}/harmless") if PROMPTS else ("organism",)
    data = rl.load_prompts(*files, sizes=(32, 12, 16))
    found = rl.find_direction(model, data)
direction, tokens = found.direction, found.refusal_tokens
print("direction:", direction.label, "- relaxed:", direction.relaxed or "nothing")

# %%
found.plot()

# %% [markdown]
# The metric must tell refused from answered prompts; otherwise nothing below that uses it means anything. The histogram shows
# the training prompts, by whether the model's own reply refused.

# %%
print("AUROC on replies that did not propose the tokens:", tokens.auroc)
tokens.plot()

# %% [markdown]
# ## Is it necessary, is it sufficient?
#
# Greedy replies to held-out prompts, judged by phrases. The effect is the distance from the intervention to its *placebo*,
# a random direction of equal norm.

# %%
edits = {"harmful": ["baseline", "ablation", "random_ablation"], "harmless": ["baseline", "addition", "random_addition"]}
if STUDY:
    said = study.completions
else:
    under = {kind: rl.hooks.named_conditions(direction, names) for kind, names in edits.items()}
    tests = {"harmful": data.harmful.test, "harmless": data.harmless.test}
    said = {kind: rl.refusal.complete(model, tests[kind], under[kind], kind, 16) for kind in edits}
rates = {kind: replies.rates for kind, replies in said.items()}
rl.plots.plot_refusal_rates(rates)

# %%
lost, turned = "of the refusals are gone", "of the answers became refusals"
for kind, sign in (("harmful", -1), ("harmless", +1)):
    for name in edits[kind][1:]:
        share = rl.report.net_effect(rates[kind], name, sign)
        print(f"{name}: {rl.report.percent(share)} {lost if sign < 0 else turned}: {rl.report.grade(share)}")

# %% [markdown]
# The shares are of the replies that could change: refusals for ablation, answers for addition. "Most of it" needs an interval
# above one half; see [the method](../docs/method.md). Here ablation leaves some of the refusals, and the model refuses less than
# half of the harmful prompts to begin with.
#
# ## Is one direction enough?
#
# If refusal had more dimensions, ablating more of them should lower the metric further. `pca` takes the principal components of
# the differences, the first of which is close to the direction; `repeated` starts with the direction and adds the mean
# difference that is left after ablation; `random` is the placebo. A lower metric counts only where KL on harmless prompts stays
# low.

# %%
train, test = (data.harmful.train[:16], data.harmless.train[:16]), (data.harmful.test[:12], data.harmless.test[:12])
planes = [make(model, *train, direction, 2) for make in (rl.direction.pca_subspace, rl.direction.repeated_subspace)]
effects = rl.direction.subspace_effects(model, planes, *test, tokens)
effects.plot()

# %%
effects.to_frame().round(3)

# %% [markdown]
# In the stored run (12 prompts, so wide intervals) a second direction does not lower the metric further, and KL triples:
# nothing here speaks for more than one direction. Nor does it show that one is enough: ablating it leaves some refusals.

# %% [markdown]
# ## How much of it?
#
# Ablation in part: what share of the projection has to be removed, and what does that cost on harmless prompts? (Six prompts of
# each kind, which is few.)

# %%
import dataclasses

few = rl.data.PromptPair(*(dataclasses.replace(p, test=p.test[:6]) for p in (data.harmful, data.harmless)))
doses, everywhere = {"ablation": [0.5, 1]}, {"all": rl.direction.Scope()}
rl.direction.dose_response(model, few, found, strengths=doses, scopes=everywhere, max_new_tokens=12).plot()

# %% [markdown]
# ## Who writes it, and what does it say in words?
#
# Heads are chosen on validation prompts and reported on test prompts. A large write does not prove a cause: on this model,
# replacing the top eight heads was *not shown* to change refusals (see [the results](../docs/results.md)).

# %%
heads = rl.attribution.top_heads(model, data.harmful.val[:12], test[0], direction, contrast=test[1])
heads.plot("top heads")

# %%
writes = rl.attribution.head_writes(model, test[0], heads.heads[:4])
rl.attribution.lens(model, {"direction": direction, **writes}).plot()

# %% [markdown]
# Compare each row with the random direction's and with the range in the title: every vector has some token that it favours most.
# In the stored run the direction's highest logit lies within the range of random directions, so the words mean nothing here.
#
# ## One conversation, token by token
#
# White is the range of 39 random directions at that token and layer. The two maps show the conversation with the model's reply,
# plain and with the direction ablated.

# %%
seen = rl.direction.read(model, test[0][0], direction, reply=12, under={"ablation": [rl.Ablate(direction)]})
seen.plot()

# %% [markdown]
# ## What does a suffix do?
#
# Suffixes come from files; nothing here searches for them. The shipped ones were made for the embedded model, so on another
# model they are a control: words that look like an attack. Give `rl.SuffixSet.load` a file of your own. Each suffix is compared
# with random tokens of equal length, on prompts that the model refuses.

# %%
suffixes = rl.SuffixSet.load(rl.organism.suffixes()).of("adversarial")
settings = rl.hijacking.Settings(max_new_tokens=0, causal="none", shuffled=False, detail=1, prompts=6, forensics=4)
attack = rl.hijacking.investigate(model, few, suffixes, direction, refusal_tokens=tokens, settings=settings)
attack.results_frame().drop(columns=["suffix"]).round(3)

# %%
attack.plot("trace by layer")

# %%
attack.plot("attention by region")

# %%
print(rl.hijacking.mechanism(attack.result()).sentence)

# %% [markdown]
# In the stored run only two of the six prompts are refused, too few to conclude anything, however clear the figures look:
# the intervals above say so. `refusal-lens hijack` takes up to 128 refused prompts by default.

# %% [markdown]
# ## Now your own model
#
# Set the variables above, or write the names into the first code cell. The command line does the same with more prompts, can be
# stopped and resumed, and writes a report; the next cell prints the commands.

# %%
print(f"refusal-lens run {os.path.basename(MODEL)} --harmful FOLDER/harmful --harmless FOLDER/harmless --relax --out RUN")
print(f"refusal-lens hijack {os.path.basename(MODEL)} --suffixes FILE --direction RUN")
print("refusal-lens open RUN")
