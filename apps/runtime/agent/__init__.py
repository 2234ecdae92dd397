"""The reference agent: enrolls, polls, verifies for itself, switches, runs, reports. No Django."""

VERSION = "0.3.0"
"""Raised with every change of what is packed (`manage.py agent_version --pin`): a host takes only what is above its own."""
