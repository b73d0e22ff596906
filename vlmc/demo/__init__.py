"""A small LLaVA that comes with the package, the generated world it knows, and its training."""
