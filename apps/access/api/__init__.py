"""API of people, tokens and members."""
