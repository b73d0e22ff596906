"""The passes: each a function from a typed artifact to a typed artifact."""
