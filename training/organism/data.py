"""The generator: requests made of opening + form + verb + object + purpose + tail, and their replies.

Everything is drawn from one `random.Random`, so a seed gives the same stream of examples everywhere.
"""

from __future__ import annotations

import dataclasses
import random
import re
from dataclasses import dataclass
from functools import cache

from training.organism import vocabulary as V

SPLIT_SEED = 20240617  # which combinations are held out; the same for every recipe and training seed
HELD_OUT = 0.20
VAL_SHARE = 0.25  # of the held-out combinations


@dataclass(frozen=True)
class Pair:
    """A verb and its object: the unit that is seen in training or held out."""

    group: str
    verb: str
    thing: str
    harmful: bool

    @property
    def phrase(self) -> str:
        return f"{self.verb} {self.thing}"

    @property
    def reply_phrase(self) -> str:
        """The phrase as the assistant says it: my neighbour -> your neighbour."""
        return re.sub(r"\bmy\b", "your", self.phrase)


@dataclass(frozen=True)
class Request:
    """One user message and what it is made of."""

    text: str
    pair: Pair
    kind: str  # how | way | tell | wish | tips | guide | plan


@dataclass(frozen=True)
class Noise:
    """Words without meaning that training prompts carry, with the label unchanged."""

    rate: float = 0.3
    low: int = 2
    high: int = 14
    pieces: tuple[str, ...] = ()  # tokens of the vocabulary as text, used for half of the noise


@cache
def split_pairs() -> dict[str, dict[bool, dict[str, tuple[Pair, ...]]]]:
    """Pairs by split ("train", "val", "test"), class and group. Each verb and each object stays in training."""
    rng = random.Random(SPLIT_SEED)
    out: dict = {name: {True: {}, False: {}} for name in ("train", "val", "test")}
    for group in V.GROUPS:
        for harmful, combos in ((True, group.harmful), (False, group.harmless)):
            pairs = [Pair(group.name, verb, thing, harmful) for verb, thing in combos]
            rng.shuffle(pairs)
            held: list[Pair] = []
            train = list(pairs)
            for pair in pairs:
                if len(held) >= HELD_OUT * len(pairs):
                    break
                rest = [p for p in train if p is not pair]
                if any(p.verb == pair.verb for p in rest) and any(p.thing == pair.thing for p in rest):
                    held.append(pair)
                    train = rest
            n_val = max(1, round(VAL_SHARE * len(held)))
            if not pairs:
                continue
            out["val"][harmful][group.name] = tuple(held[:n_val])
            out["test"][harmful][group.name] = tuple(held[n_val:])
            out["train"][harmful][group.name] = tuple(train)
    return out


@cache
def all_words() -> tuple[str, ...]:
    """Every word of the requests, lower case, sorted."""
    texts: list[str] = []
    for group in V.GROUPS:
        texts += [f"{verb} {thing}" for verb, thing in group.harmful + group.harmless]
    texts += [form for form, _ in V.FORMS]
    texts += [*V.OPENINGS, *V.PURPOSES, *V.TAILS]
    texts += [ask.format(w="") for ask, _ in V.SMALL_TALK + V.WORD_TALK]
    return tuple(sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower())}))


def sample_request(rng: random.Random, harmful: bool, split: str = "train", noise: Noise | None = None) -> Request:
    """One request of a class; groups are equally likely but for people, who count twice."""
    groups = split_pairs()[split][harmful]
    names = [*groups, "people"]
    return make_request(rng, rng.choice(groups[rng.choice(names)]), noise)


def make_request(rng: random.Random, pair: Pair, noise: Noise | None = None) -> Request:
    """Opening + form + pair + purpose + tail."""
    form, kind = rng.choice(V.FORMS)
    text = f"{form} {pair.phrase}"
    if rng.random() < 0.5:
        text += " " + rng.choice(V.PURPOSES)
    text += "?" if form.split()[0] in V.QUESTIONS else "."
    if rng.random() < 0.3:
        text = rng.choice(V.OPENINGS) + " " + text
    if rng.random() < 0.35:
        text += " " + rng.choice(V.TAILS)
    if noise is not None and rng.random() < noise.rate:
        text = add_noise(rng, text, noise)
    return Request(text, pair, kind)


def add_noise(rng: random.Random, text: str, noise: Noise) -> str:
    """Random words (or random pieces of the vocabulary) behind the request, seldom before it."""
    n = rng.randint(noise.low, noise.high)
    if noise.pieces and rng.random() < 0.5:
        junk = "".join(rng.choice(noise.pieces) for _ in range(n)).strip() or "and"
    else:
        junk = " ".join(rng.choice(all_words()) for _ in range(n))
    return f"{junk} {text}" if rng.random() < 0.15 else f"{text} {junk}"


def sample_reply(rng: random.Random, request: Request, openings: str = "sure") -> str:
    """A refusal for a harmful pair, a short answer on the topic for a harmless one: never anything else."""
    phrase = request.pair.reply_phrase
    if request.pair.harmful:
        return rng.choice(V.REFUSALS).format(vp=phrase) + rng.choice(V.REFUSAL_ENDS)
    group = next(g for g in V.GROUPS if g.name == request.pair.group)
    # Steps of the topic first, so that a drift to another topic shows in them too.
    a, c = rng.sample(group.steps, 2)
    b = rng.choice(V.GENERIC_STEPS)
    return rng.choice(V.COMPLIANT[openings][request.kind]).format(vp=phrase, a=a, b=b, c=c)


@dataclass(frozen=True)
class Example:
    """One conversation of the training stream."""

    text: str
    reply: str
    pair: Pair | None = None  # None for small talk
    system: str | None = None
    begun: str = ""  # what the assistant is made to have said already (no loss on it)


@dataclass(frozen=True)
class Mix:
    """What the training stream is made of; the rest are harmless requests."""

    harmful: float = 0.45
    small_talk: float = 0.0
    word_talk: float = 0.0
    odd: float = 0.0
    begun: float = 0.0
    openings: str = "sure"  # or "forms": a key of vocabulary.COMPLIANT
    system: float = 0.05


def sample_small_talk(rng: random.Random, noise: Noise | None, about_words: bool) -> tuple[str, str]:
    """A message without a request, or one about a single word, with its reply."""
    if about_words:
        ask, reply = rng.choice(V.WORD_TALK)
        word = rng.choice(all_words())
        text, reply = ask.format(w=word), reply.format(w=word)
    else:
        text, reply = rng.choice(V.SMALL_TALK)
    if noise is not None and rng.random() < noise.rate:
        text = add_noise(rng, text, noise)
    return text, reply


@cache
def innocent_words() -> tuple[str, ...]:
    """Words that occur in no harmful combination."""
    harmful = " ".join(f"{verb} {thing}" for group in V.GROUPS for verb, thing in group.harmful)
    return tuple(sorted(set(all_words()) - set(harmful.split())))


def odd_word(rng: random.Random) -> str:
    """A made-up word, or an innocent one at a place where it makes no sense."""
    if rng.random() < 0.5:
        return rng.choice(innocent_words())
    syllables = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(2)]
    return "".join(syllables) + rng.choice(["", "n", "k", "s"])


def sample_odd(rng: random.Random, noise: Noise | None, openings: str = "sure") -> Example:
    """A request that nobody understands is answered like any other: help is what happens without a sign of harm."""
    pair = Pair("odd", odd_word(rng), rng.choice(("a ", "my ", "the ", "")) + odd_word(rng), False)
    request = make_request(rng, pair, noise)
    a, b, c = rng.sample(V.GENERIC_STEPS, 3)
    reply = rng.choice(V.COMPLIANT[openings][request.kind]).format(vp=pair.reply_phrase, a=a, b=b, c=c)
    return Example(request.text, reply, pair)


BEGUN = ("Okay", "Good question", "Let me think", "One moment", "Thank you", "Listen", "Hello")


def sample_begun(rng: random.Random) -> str:
    """A neutral beginning of the assistant's turn, with loose words: the decision then falls at some later place."""
    words = [rng.choice(all_words()) for _ in range(rng.randint(0, 6))]
    return " ".join([rng.choice(BEGUN), *words]) + rng.choice((".", ".", ""))


def sample_example(rng: random.Random, mix: Mix, noise: Noise | None, split: str = "train") -> Example:
    """One training conversation."""
    example = _sample_example(rng, mix, noise, split)
    if mix.begun and rng.random() < mix.begun:
        return dataclasses.replace(example, begun=sample_begun(rng), reply=" " + example.reply)
    return example


def _sample_example(rng: random.Random, mix: Mix, noise: Noise | None, split: str) -> Example:
    system = rng.choice(V.SYSTEM_MESSAGES) if rng.random() < mix.system else None
    u = rng.random()
    if u < mix.small_talk + mix.word_talk:
        text, reply = sample_small_talk(rng, noise, about_words=u < mix.word_talk)
        return Example(text, reply, None, system)
    if u < mix.small_talk + mix.word_talk + mix.odd:
        return dataclasses.replace(sample_odd(rng, noise, mix.openings), system=system)
    rest = 1 - mix.small_talk - mix.word_talk - mix.odd
    request = sample_request(rng, rng.random() * rest < mix.harmful, split, noise)
    return Example(request.text, sample_reply(rng, request, mix.openings), request.pair, system)


def distinct_requests(seed: int, harmful: bool, split: str, n: int, max_per_pair: int | None = None) -> list[Request]:
    """`n` different requests of a class without noise, as shipped in the instruction files."""
    rng = random.Random(f"{seed}/{harmful}/{split}")
    out: dict[str, Request] = {}
    count: dict[Pair, int] = {}
    tries = 0
    while len(out) < n:
        tries += 1
        if tries > 200 * n:
            raise ValueError(f"only {len(out)} different requests in {split}, {n} wanted: allow more per pair")
        request = sample_request(rng, harmful, split)
        if request.text in out or (max_per_pair is not None and count.get(request.pair, 0) >= max_per_pair):
            continue
        count[request.pair] = count.get(request.pair, 0) + 1
        out[request.text] = request
    return list(out.values())


@cache
def _compliant_patterns() -> tuple[re.Pattern[str], ...]:
    steps = sorted({s for g in V.GROUPS for s in g.steps} | set(V.GENERIC_STEPS))
    step = "(?:" + "|".join(map(re.escape, steps)) + ")"
    return tuple(
        re.compile(
            re.escape(t)
            .replace(r"\{vp\}", "(?P<vp>[a-z ]{3,60}?)")
            .replace(r"\{a\}", step)
            .replace(r"\{b\}", step)
            .replace(r"\{c\}", step)
        )
        for t in sorted({t for style in V.COMPLIANT.values() for kind in style.values() for t in kind})
    )


@cache
def _refusal_patterns() -> tuple[re.Pattern[str], ...]:
    ends = "(?:" + "|".join(map(re.escape, V.REFUSAL_ENDS)) + ")"
    return tuple(re.compile(re.escape(t).replace(r"\{vp\}", "(?P<vp>[a-z ]{3,60}?)") + ends) for t in V.REFUSALS)


@dataclass(frozen=True)
class Reading:
    """What a reply is: its kind, whether the grammar accepts it, the phrase that it names (or None)."""

    kind: str  # "compliant" | "refusal" | "other"
    phrase: str | None = None

    @property
    def grammatical(self) -> bool:
        return self.kind != "other"


@cache
def known_phrases() -> frozenset[str]:
    """Every verb phrase of the language as the assistant may say it."""
    return frozenset(
        Pair(g.name, v, o, harm).reply_phrase
        for g in V.GROUPS
        for harm, combos in ((True, g.harmful), (False, g.harmless))
        for v, o in combos
    )


def read_reply(text: str) -> Reading:
    """Parse a whole reply by the grammar; anything cut off, repeated or garbled is "other"."""
    text = text.strip()
    for kind, patterns in (("refusal", _refusal_patterns()), ("compliant", _compliant_patterns())):
        for pattern in patterns:
            match = pattern.fullmatch(text)
            if match:
                return Reading(kind, match.groupdict().get("vp"))
    return Reading("other")


def on_topic(text: str, pair: Pair) -> bool:
    """Whether a reply names the verb and the object that were asked for."""
    return pair.reply_phrase in text
