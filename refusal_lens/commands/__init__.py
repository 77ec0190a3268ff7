"""The subcommands of `refusal-lens`, one module each."""
