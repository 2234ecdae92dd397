"""The reference agent: enrolls, polls, verifies for itself, switches, runs, reports. No Django."""

VERSION = "0.2.0"
