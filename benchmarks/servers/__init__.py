"""The other servers, each as its own documentation leads a user to write it."""
