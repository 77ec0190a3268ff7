"""Numbers of the paper (Arditi et al. 2024, section 2.3 and appendix C), each written once."""

SIZES = (128, 32, 100)  # training and validation prompts of each kind, and a test set of 100
MAX_KL = 0.1  # nats
MIN_INDUCE = 0.0
LAYER_CUTOFF = 0.8  # share of the layers
