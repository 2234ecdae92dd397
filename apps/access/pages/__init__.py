"""Pages of sign-in, invitations and password resets."""
