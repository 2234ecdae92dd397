"""The web server: what clients can do to it, and what it does to them."""
