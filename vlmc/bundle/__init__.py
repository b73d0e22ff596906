"""The bundle: its manifest, and how it is written whole, read and verified."""
