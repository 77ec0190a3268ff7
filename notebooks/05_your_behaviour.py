# %% [markdown]
# # Another behaviour: any two sets of prompts
#
# Nothing in the method is specific to refusal. Two sets of prompts that differ in one behaviour give a direction, and the
# same questions follow: does adding it cause the behaviour, does ablating it remove the behaviour, and does it differ from
# the refusal direction? Here the behaviour is *answering with a list*, on the embedded model.

# %%
import refusal_lens as rl

model = rl.load_model("organism")
data = rl.load_prompts("organism", sizes=(128, 32, 64))
harmful, harmless = data.harmful, data.harmless

# %% [markdown]
# ## Two sets of prompts
#
# Harmless requests that ask for tips, steps, ideas or a list, and harmless requests that don't. Any two files will do:
# two languages, two tones, two topics. Half of each is held out to measure on.

# %%
words = ("tips", "steps", "ideas", "list")
texts = [*harmless.train, *harmless.val, *harmless.test]
positive = [t for t in texts if any(word in t.lower() for word in words)]
negative = [t for t in texts if t not in positive]
(pos_train, pos_test), (neg_train, neg_test) = ((p[::2], p[1::2]) for p in (positive, negative))
len(positive), len(negative), positive[:3], negative[:3]

# %% [markdown]
# ## A metric of the behaviour
#
# Refusal has its phrases; another behaviour is read from the first tokens that the positive prompts make more likely. The
# metric is their log-odds at the last position.

# %%
tokens = rl.refusal.behaviour_tokens(model, pos_train, neg_train)
tokens.texts

# %% [markdown]
# ## Its direction and the refusal direction
#
# The refusal direction is chosen by the paper's rule; the other is the mean difference at the same position and layer.

# %%
found = rl.find_direction(model, data)
refusal, refusal_tokens = found.direction, found.refusal_tokens
other = rl.extract_directions(model, pos_train, neg_train).direction(refusal.pos, refusal.layer)
print("cosine of the two:", round(refusal.cosine(other), 3))

# %% [markdown]
# ## Cross-effects
#
# Each direction on each set of prompts: the change in that set's metric on held-out prompts, with bootstrap 95% intervals;
# on the right, the same with random directions of equal norm.

# %%
Ground = rl.direction.Ground
grounds = {
    "refusal, harmful": Ground(harmful.test.texts, refusal_tokens),
    "refusal, harmless": Ground(harmless.test.texts, refusal_tokens),
    "list, asked for": Ground(tuple(pos_test), tokens),
    "list, not asked for": Ground(tuple(neg_test), tokens),
}
directions = {"refusal": refusal, "list": other}
rl.direction.effect_matrix(model, directions, grounds, "ablation").plot()

# %%
added = rl.direction.effect_matrix(model, directions, grounds, "addition")
added.plot()

# %% [markdown]
# Read the diagonal against the rest *and* against the right-hand side. Ablating each direction removes its own behaviour
# and leaves the other within a few tenths of where it was. Adding is blunter: a vector of this length moves other
# metrics too, whichever way it points, so an effect of addition counts only beyond its placebo.

# %%
added.to_frame().round(2)

# %% [markdown]
# ## Now your own model
#
# Give two files of prompts that differ in one behaviour. If the metric does not differ between them at baseline, there is
# no behaviour to move: check that first.

# %%
MODEL, POSITIVE, NEGATIVE = "", "positive.txt", "negative.txt"
if MODEL:
    model = rl.load_model(MODEL)
    shown, absent = rl.PromptSet.load(POSITIVE), rl.PromptSet.load(NEGATIVE)
    tokens = rl.refusal.behaviour_tokens(model, shown.train, absent.train)
    mine = rl.extract_directions(model, shown.train, absent.train).direction(-1, model.n_layers // 2)
    grounds = {"shown": Ground(shown.test.texts, tokens), "absent": Ground(absent.test.texts, tokens)}
    print(rl.direction.effect_matrix(model, {"behaviour": mine}, grounds, "ablation").to_frame())
