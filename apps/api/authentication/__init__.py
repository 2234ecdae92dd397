"""Authentication of the API, by family of credentials."""
