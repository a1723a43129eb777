"""Tests of the service on several machines, in an environment of their own: `make fleet`."""
