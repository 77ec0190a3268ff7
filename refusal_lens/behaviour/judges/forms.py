"""How a judge is named on the command line (read without torch, for its help)."""

FORMS = (
    "substrings; llama-guard-2:FOLDER; llama-guard-3:FOLDER; classifier:FOLDER (or classifier:FOLDER#LABEL,LABEL of "
    "the safe labels); openai:MODEL@http://HOST:PORT/v1"
)
