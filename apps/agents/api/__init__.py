"""API of agents: for people and for hosts that enroll (`people`), and for agents (`protocol`)."""
