"""How the embedded model was made: data, tokenizer, training, suffix search, measurements, sweep.

Nothing here is installed with the library; the result is `refusal_lens/organism/`.
"""
