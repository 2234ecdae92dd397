"""The base of the API: authentication, authorization, scope, input and responses."""
