"""The paths of the tree, relative to the API prefix, as every app's `urls.py` spells them."""

ORGANIZATION = "orgs/<uuid:org_id>"
PROJECT = f"{ORGANIZATION}/projects/<uuid:project_id>"
ENVIRONMENT = f"{PROJECT}/environments/<uuid:environment_id>"
AGENT = "agents/<uuid:agent_id>"
"""Paths that an agent calls about itself."""
