"""The command line: ``refusal-lens run | open | report | hijack | evaluate | certify | sweep``."""
