"""What the control plane and the agents share. Plain Python: it also runs on hosts that have no Django."""
